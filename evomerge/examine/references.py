"""The models that a score is held against, by name: those that a recipe brings and those that are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from evomerge.errors import InputError
from evomerge.files.objects import FitnessSpec
from evomerge.recipe.mergekit import read_recipe
from evomerge.recipe.recipe import Recipe


def recipe_of(model: str | Path) -> Recipe | None:
    """The recipe, if `model` is a recipe file. Raises InputError."""
    path = Path(model)
    return read_recipe(path) if path.suffix in (".yaml", ".yml") else None


def base_of(recipe: Recipe) -> str | None:
    """The checkpoint that the last of a recipe's documents with a base has for it; None where none has."""
    models = recipe.models()
    return next((d.base for d in reversed(recipe.documents) if d.base in models), None)


def parents_of(recipe: Recipe) -> dict[str, str]:
    """The recipe's checkpoints by name: its base, and the others by the name of their folder (of several folders with
    one name, those after the first by their reference)."""
    base = base_of(recipe)
    found = {"base": base} if base else {}
    for model in recipe.models():
        if model != base:
            name = Path(model.partition("@")[0]).name
            found[model if name in found else name] = model
    return found


def needed_references(spec: FitnessSpec, given: Mapping[str, str]) -> dict[str, str]:
    """The references that some floor is relative to. InputError where one is not given."""
    wanted: dict[str, str] = {}
    for piece in spec.slices.values():
        if piece.floor is None or piece.floor.of is None:
            continue
        of = piece.floor.of
        names = [n for n in given if n != "base"] if of == "best_source" else [of]
        if not names or any(n not in given for n in names):
            name = "NAME" if of == "best_source" else of
            problem = f"the floor of {piece.name!r} is relative to {of!r}, which is not given"
            raise InputError(problem, f"add --reference {name}=MODEL", piece.floor.where)
        wanted.update({n: given[n] for n in names})
    return wanted


def source_names(references: Iterable[str]) -> list[str]:
    """The names that floors may refer to besides "base"."""
    return [name for name in references if name != "base"]
