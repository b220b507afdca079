"""`reproduce.json`: what a merge was made of and what it made, file by file, so that anybody can make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.checkpoint import GENERATION_FILE, NAMED_TEMPLATES, PROCESSOR_FILES, TOKENIZER_FILES
from evomerge.checkpoints.identity import FileDigest, file_digest, fingerprint
from evomerge.errors import InputError, Where
from evomerge.escape import quoted
from evomerge.merging.disk.naming import Names, PartName
from evomerge.safety.names import name_fault
from evomerge.safety.paths import status
from evomerge.safety.read import read_object
from evomerge.versions import MERGING, versions

if TYPE_CHECKING:  # torch
    from evomerge.merging.plan.jobs import MergePlan

RECORD = "reproduce.json"
FORMAT = 1
_MEND = "copy or download it again"
_LARGEST = 64 << 20


@dataclass(frozen=True)
class Options:
    """The options of a merge that its files depend on."""

    truncate_embeddings: bool = False
    mix_types: bool = False
    copy_tokenizer: bool = True
    shard_bytes: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Part:
    """A folder or repository that was read.

    Attributes:
        files: name -> digest, of all files in it that the merge depends on.
        hub, revision: where it is from the hub.
    """

    files: Mapping[str, FileDigest]
    hub: str | None = None
    revision: str | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.files.items())


@dataclass(frozen=True)
class Record:
    """The content of `reproduce.json`.

    Attributes:
        recipe: the text of the recipe beside it.
        references: of that recipe: reference -> the names of its model, and its adapter or file of weights.
        parts: by name.
        files: of the checkpoint, by name; not the record itself.
        digest: of the weights.
        versions: of the packages that made it.
        search: what is told of the search that it comes from.
    """

    recipe: str
    references: Mapping[str, tuple[str, ...]]
    parts: Mapping[str, Part]
    options: Options
    digest: str
    files: Mapping[str, FileDigest] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: versions(MERGING))
    search: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        data = {
            "about": "`evomerge reproduce` rebuilds this merge from it, and compares",
            "format": FORMAT,
            "digest": self.digest,
            "recipe": self.recipe,
            "references": {reference: list(names) for reference, names in self.references.items()},
            "models": {name: _part_data(part) for name, part in self.parts.items()},
            "options": vars(self.options),
            "files": _files_data(self.files),
            "versions": dict(self.versions),
            **({"search": dict(self.search)} if self.search else {}),
        }
        return json.dumps(data, indent=2) + "\n"


def _part_data(part: Part) -> dict[str, Any]:
    hub = {"hub": part.hub, "revision": part.revision} if part.hub else {}
    return {**hub, "fingerprint": part.fingerprint, "files": _files_data(part.files)}


def _files_data(files: Mapping[str, FileDigest]) -> dict[str, Any]:
    return {name: digest._asdict() for name, digest in files.items()}


def inputs(planned: MergePlan, names: Names) -> dict[str, Part]:
    """Every folder and repository that a merge has read, with the digests of its files that are here."""
    places: dict[Path, PartName] = {}
    files: dict[Path, None] = {}
    for checkpoint in planned.checkpoints:
        places.update(zip(checkpoint.places, names.parts[checkpoint.reference], strict=True))
        files.update(dict.fromkeys(checkpoint.files()))
    folder = planned.vocabulary.folder
    if folder not in places:  # of a tokenizer alone
        unplaced = [part for part in names.all_parts if part not in places.values()]
        places[folder] = next(part for part in unplaced if part.path in (folder, None))
    donor = planned.donor.path
    files.update(dict.fromkeys(donor / name for name in (GENERATION_FILE, *PROCESSOR_FILES)))
    files.update(dict.fromkeys(folder / name for name in (*TOKENIZER_FILES, *PROCESSOR_FILES)))
    files.update(dict.fromkeys(sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))))
    parts: dict[str, Part] = {}
    for place, part in places.items():
        own = {f.relative_to(place).as_posix() if f != place else f.name: f for f in files if _in(f, place)}
        digests = {name: file_digest(file) for name, file in own.items() if file.is_file()}
        parts[part.reference] = Part(digests, part.name if part.hub else None, part.revision)
    return parts


def _in(file: Path, place: Path) -> bool:
    return (
        file == place or file.parent == place or (file.parent.name == NAMED_TEMPLATES and file.parent.parent == place)
    )


def read_record(file: Path) -> Record:
    """Reads a `reproduce.json`. InputError where it is none, or names files outside of its folder."""
    where, data = Where(file), read_object(file, largest=_LARGEST)
    if data.get("format") != FORMAT:
        problem = f"is no record of a merge (format is {quoted(data.get('format'), 40)})"
        raise InputError(problem, f"give the {RECORD} of a merge", where)
    try:
        options = {name: value for name, value in data["options"].items() if name in Options.__annotations__}
        record = Record(
            recipe=_text(data["recipe"]),
            references={_text(r): tuple(map(_text, names)) for r, names in data["references"].items()},
            parts={_text(name): _part(part) for name, part in data["models"].items()},
            options=Options(**options),
            digest=_text(data["digest"]),
            files=_files(data["files"]),
            versions={_text(name): _text(version) for name, version in data["versions"].items()},
            search=dict(data.get("search", {})),
        )
        for name, kind in (("shard_bytes", int), ("device", str)):
            if type(getattr(record.options, name)) is not kind:
                raise TypeError(f"{name} is {quoted(getattr(record.options, name), 40)}")
        unknown = {name for names in record.references.values() for name in names} - record.parts.keys()
        if unknown or record.options.shard_bytes < 1:
            raise ValueError(f"nothing is told of {sorted(unknown)}" if unknown else "shard_bytes is no size")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {quoted(str(error), 100)}"
        raise InputError(f"is damaged ({what})", _MEND, where) from None
    return record


def _part(data: Any) -> Part:
    hub, revision = data.get("hub"), data.get("revision")
    return Part(_files(data["files"]), None if hub is None else _text(hub), None if hub is None else _text(revision))


def _files(data: Any) -> dict[str, FileDigest]:
    return {_file_name(name): FileDigest(_text(d["sha256"]), int(d["bytes"])) for name, d in data.items()}


def _file_name(name: Any) -> str:
    """A name of a file, or of one in a folder beside the others. ValueError for any other path."""
    parts = _text(name).removeprefix(".").split("/")
    if len(parts) > 2 or any(name_fault(part) for part in parts):
        raise ValueError(f"{name} is no file of a checkpoint")
    return str(name)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{quoted(value, 40)} is no text")
    return value


def changed(part: Part, place: Path) -> str | None:
    """The first file of a part that is missing in a folder (or is not this file of weights), or is another one there;
    None where all are the same."""
    for name, digest in part.files.items():
        file = place / name if place.is_dir() else place
        if status(file) is None or file_digest(file) != digest:
            return name
    return None
