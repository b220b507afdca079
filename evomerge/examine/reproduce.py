"""`evomerge.reproduce`: makes a published merge again from its `reproduce.json`, and compares file by file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from evomerge.cards.front_matter import CARD, LICENCE_TEXTS
from evomerge.checkpoints import hub
from evomerge.checkpoints.pickled import with_pickles
from evomerge.checkpoints.write import EVAL_RESULTS, check_target
from evomerge.errors import InputError, Where, suggestion
from evomerge.merging.disk.origin import Origin
from evomerge.merging.disk.record import RECORD, Part, Record, changed, read_record
from evomerge.recipe.mergekit import parse_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.relocated import references, relocated
from evomerge.safety.paths import absolute, status
from evomerge.safety.read import is_there
from evomerge.study.observer import Observer
from evomerge.versions import MERGING, versions

TEXTS = (CARD, *LICENCE_TEXTS)
"""Files for people, which are written from the cards of the models and from a run."""
_FLAG = Where("--models")


@dataclass(frozen=True)
class FileResult:
    """One file of a merge, beside the record and as made again.

    Attributes:
        published: whether the file beside the record is the recorded one; None: no checkpoint stands there.
        rebuilt: whether the file that was made again is; None: it is not made again (texts for people).
    """

    published: bool | None
    rebuilt: bool | None

    @property
    def equal(self) -> bool:
        return self.published is not False and self.rebuilt is not False


@dataclass(frozen=True)
class Reproduced:
    """What a comparison found.

    Attributes:
        digest: of the weights that were made again, and of those that were published.
        files: by name.
        versions: package -> (recorded, here), where they differ.
        folder: where the merge was made again; None where it was deleted.
    """

    digest: tuple[str, str]
    files: Mapping[str, FileResult]
    versions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def equal(self) -> bool:
        """Whether all that was compared is equal, bit for bit."""
        return self.digest[0] == self.digest[1] and all(result.equal for result in self.files.values())


@with_pickles
def reproduce(
    record: str | Path,
    output: str | Path | None = None,
    *,
    models: Mapping[str, str] | None = None,
    device: str = "cpu",
    allow_pickle: bool = False,
    observer: Observer | None = None,
) -> Reproduced:
    """Makes a merge again and compares it with what its record says. The files that stand beside the record are
    compared, too.

    Args:
        record: a `reproduce.json`.
        output: the folder to write; without one, the merge is deleted after the comparison.
        models: name -> path of a model that is not where it was; names are those of the record.
        device: where to merge. Bits are equal on one kind of device.
        allow_pickle: as in `merge`.
        observer: is told what happens.

    Raises:
        InputError: the record is damaged, or a model is not here, or is not the one that was merged. Nothing was
            merged then.
    """
    observer = observer or Observer()
    file = absolute(record)
    told = read_record(file)
    if output is not None:
        check_target(absolute(output))
    places = _places(told, file, models or {})
    observer.phase("comparing the models")
    for name, part in told.parts.items():
        _check(name, part, places[name])
    recipe = _recipe(told, file, places)
    # torch takes seconds to import.
    from evomerge.merging.disk.stream import merge

    if device.partition(":")[0] != told.options.device:
        observer.warn(f"it was merged on another device ({told.options.device}): the last bits may differ")
    with _folder(output) as folder:
        merge(
            recipe,
            folder,
            device=device,
            truncate_embeddings=told.options.truncate_embeddings,
            mix_types=told.options.mix_types,
            copy_tokenizer=told.options.copy_tokenizer,
            shard_bytes=told.options.shard_bytes,
            model_card=False,
            allow_pickle=allow_pickle,
            origin=Origin(text=told.recipe),
            progress=observer.progress,
        )
        observer.phase("comparing the files")
        made = read_record(folder / RECORD)
        return Reproduced(
            digest=(made.digest, told.digest),
            files=_compared(told, made, file.parent),
            versions=_changed_versions(told),
            folder=None if output is None else folder,
        )


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path]:
    if output is not None:
        yield absolute(output)
        return
    with TemporaryDirectory() as folder:
        yield Path(folder).resolve() / "merge"


def _places(record: Record, file: Path, models: Mapping[str, str]) -> dict[str, Path | str]:
    """Where each part is: an absolute path, or a reference of the hub. InputError where it is nowhere."""
    known = {name.partition("@")[0]: name for name in record.parts} | {name: name for name in record.parts}
    for name in models:
        if name not in known:
            raise InputError(f"the merge has no model {name!r}", suggestion(name, known), _FLAG)
    given = {known[name]: absolute(path, where=_FLAG) for name, path in models.items()}
    seen = _seen(record)
    places: dict[str, Path | str] = {}
    for name, part in record.parts.items():
        if name in given:
            places[name] = given[name]
        elif part.hub is not None:
            places[name] = f"{part.hub}@{part.revision}"
        else:
            likely = (file.parent / seen.get(name, name), Path(name))
            there = next((place.resolve() for place in likely if status(place) is not None), None)
            if there is None:
                raise InputError(f"the model {name} is not here", f"give its place: --models {name}=PATH", Where(file))
            places[name] = there
        if isinstance(places[name], Path) and status(Path(places[name])) is None:
            raise InputError(f"there is no {places[name]}", "check the path", _FLAG)
    return places


def _seen(record: Record) -> dict[str, str]:
    """The relative paths by which the recipe names models that were here only."""
    found = {}
    for reference, names in record.references.items():
        written = reference.split("+") if len(names) > 1 else [reference]
        for name, path in zip(names, written, strict=False):
            if not Path(path).is_absolute():
                found[name] = path
    return found


def _check(name: str, part: Part, place: Path | str) -> None:
    """InputError where a model is not the one that was merged."""
    if isinstance(place, str):
        folder, _ = hub.fetch(*hub.split_revision(place))
        for wanted in part.files:
            hub.arrive(folder / wanted)
    else:
        folder = place
    other = changed(part, folder)
    if other is not None:
        what = "is another one" if is_there(folder / other if folder.is_dir() else folder) else "is missing"
        problem = f"{name} is not the model that was merged: {folder / other} {what}"
        raise InputError(problem, f"give the right one: --models {name}=PATH")


def _recipe(record: Record, file: Path, places: Mapping[str, Path | str]) -> Recipe:
    """The recipe with the models where they are. InputError where it names one that the record does not tell of."""
    recipe = parse_recipe(record.recipe, file)
    for reference in references(recipe):
        if reference not in record.references:
            raise InputError(
                f"its recipe names {reference}, of which nothing is told", "download it again", Where(file)
            )
    names = {r: "+".join(str(places[name]) for name in parts) for r, parts in record.references.items()}
    return relocated(recipe, names)


def _compared(record: Record, made: Record, published: Path) -> dict[str, FileResult]:
    """Every recorded file, here and as made again; what was made beyond these is unequal."""
    stands = any(status(published / name) is not None for name in record.files)
    results = {}
    for name, digest in record.files.items():
        same = changed(Part({name: digest}), published) is None if stands else None
        results[name] = FileResult(same, made.files[name] == digest if name in made.files else _not_made(name))
    return results | {name: FileResult(None, False) for name in made.files.keys() - record.files.keys()}


def _not_made(name: str) -> bool | None:
    """Texts for people are not made again; that any other file is missing is a difference."""
    return None if name in TEXTS or name.startswith(f"{EVAL_RESULTS}/") else False


def _changed_versions(record: Record) -> dict[str, tuple[str, str]]:
    here = versions(MERGING)
    return {
        name: (version, here[name])
        for name, version in record.versions.items()
        if name != "platform" and here.get(name, version) != version
    }
