"""The models that a check is about: those of a search space or a recipe, or a list of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.hub import split_revision
from evomerge.checkpoints.references import check_reference
from evomerge.errors import InputError, Where
from evomerge.examine.references import check_places, parents_of
from evomerge.files.kinds import folder_kind
from evomerge.files.objects import SpaceSpec
from evomerge.files.scalars import Schema
from evomerge.files.space_file import read_space
from evomerge.files.trees import load_documents
from evomerge.recipe.mergekit import read_recipe
from evomerge.recipe.recipe import Recipe, base_of

_ENDINGS = (".yaml", ".yml")
_LONGEST = 60
"""Characters of a source's name."""
_RESERVED = ("base", "best_source", "uniform")


@dataclass(frozen=True)
class Parents:
    """Base and sources, opened by their headers.

    Attributes:
        base, sources: the checkpoints; of a recipe without a base, the first model stands for it.
        tokenizer: the policy of the merged model's tokens: "base", "union" or a source's name.
        methods: the merge methods that the file names.
        space, recipe: the file that they come from, if any.
        stands_in: whether the base is only the first of the models of a recipe that has none.
    """

    base: Checkpoint
    sources: dict[str, Checkpoint]
    tokenizer: str = "base"
    methods: tuple[str, ...] = ()
    space: SpaceSpec | None = None
    recipe: Recipe | None = None
    stands_in: bool = False

    @property
    def stacked(self) -> bool:
        """Whether a search stacks their layers as they are, and merges none."""
        return self.space is not None and self.space.stacks

    @property
    def all(self) -> dict[str, Checkpoint]:
        return {"base": self.base, **self.sources}


def open_parents(models: Sequence[str | Path], opening: Callable[[], None] = lambda: None) -> Parents:
    """Opens what a command line names: one file, or a base and its sources. `opening`: is called before the first model
    is opened, which can take a while.

    Raises:
        InputError: there is no such file or model, or too few of them.
    """
    if len(models) == 1 and Path(models[0]).suffix in _ENDINGS:
        return _of_file(Path(models[0]), opening)
    if len(models) < 2:
        kind = folder_kind(Path(models[0]).expanduser()) if models else None
        given = f"{models[0]} is {kind.name}" if kind is not None and not kind.is_model else "one model is no merge"
        raise InputError(
            given, "give a base and its sources, or a search space or recipe (.yaml)", Where("FILE_OR_MODEL")
        )
    check_places(None, models)
    references = [str(model) for model in models]
    opening()
    return opened(references[0], named(references[1:]))


def opened(base: str, sources: Mapping[str, str]) -> Parents:
    """Opens a base and its sources, by name. Raises InputError."""
    first = Checkpoint.open(base)
    return Parents(first, {name: Checkpoint.open(reference, base=first) for name, reference in sources.items()})


def _of_file(file: Path, opening: Callable[[], None]) -> Parents:
    documents = load_documents(file, Schema.RECIPE)
    if any(isinstance(document.value, dict) and "merge_method" in document.value for document in documents):
        return _of_recipe(read_recipe(file), opening)
    spec = read_space(file)
    for ref in (spec.base, *spec.sources.values()):
        check_reference(str(ref), ref.where)
    opening()
    base = Checkpoint.open(str(spec.base), spec.base.where)
    sources = {name: Checkpoint.open(str(ref), ref.where, base) for name, ref in spec.sources.items()}
    return Parents(base, sources, spec.tokenizer, spec.methods, space=spec)


def _of_recipe(recipe: Recipe, opening: Callable[[], None]) -> Parents:
    recipe.check_places()
    opening()
    places, parents = recipe.places(), parents_of(recipe)
    stands_in = base_of(recipe) is None
    first = parents.pop("base") if not stands_in else parents.pop(next(iter(parents)))
    base = Checkpoint.open(first, places.get(first))
    sources = {name: Checkpoint.open(reference, places.get(reference), base) for name, reference in parents.items()}
    policy = next((d.tokenizer.source for d in reversed(recipe.documents) if d.tokenizer is not None), "base")
    policy = "base" if policy == first else next((n for n, r in parents.items() if r == policy), policy)
    methods = tuple(dict.fromkeys(document.method for document in recipe.documents))
    return Parents(base, sources, policy, methods, recipe=recipe, stands_in=stands_in)


def named(references: Sequence[str]) -> dict[str, str]:
    """Gives each source a name: that of its folder or repository, numbered where two have the same."""
    names: dict[str, str] = {}
    for reference in references:
        plain = _plain(reference)
        name, number = plain, 2
        while name in names or name in _RESERVED:
            name, number = f"{plain}-{number}", number + 1
        names[name] = reference
    return names


def _plain(reference: str) -> str:
    """The last part of a reference, as a legal name. Of ``model+adapter`` it is the adapter's."""
    last = Path(split_revision(reference.rpartition("+")[2] or reference)[0]).name
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in last[:_LONGEST]).strip("-.")
    name = kept if kept[:1].isalpha() or kept[:1] == "_" else f"source-{kept}".rstrip("-")
    return name if name.replace("-", "_").replace(".", "_").isidentifier() else "source"
