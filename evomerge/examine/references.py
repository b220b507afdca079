"""Reference models by name: a recipe brings some, the user gives others. Relative floors refer to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from evomerge.checkpoints.references import check_reference
from evomerge.errors import InputError
from evomerge.files.kinds import folder_kind
from evomerge.files.objects import FitnessSpec
from evomerge.recipe.recipe import Recipe, base_of


def parents_of(recipe: Recipe) -> dict[str, str]:
    """Returns a recipe's checkpoints by name: its base as "base", each other by the name of its folder. Of several
    folders with one name, all but the first go by their reference."""
    base = base_of(recipe)
    parents = {"base": base} if base else {}
    for model in recipe.models():
        if model != base:
            name = Path(model.partition("@")[0]).name
            parents[model if name in parents else name] = model
    return parents


def check_places(recipe: Recipe | None, models: Iterable[str | Path]) -> None:
    """InputError where a model, or one of a recipe's, is neither a model's folder nor a possible hub id."""
    if recipe is not None:
        recipe.check_places()
    for model in models:
        check_reference(str(model))
        about = folder_kind(Path(model).expanduser())
        if about is not None and not about.is_model:
            raise InputError(f"{model} is {about.name}, not a model", about.use.format(file=model))


def needed_references(fitness: FitnessSpec, models: Mapping[str, str]) -> dict[str, str]:
    """Returns those of `models` (name -> model) that some floor is relative to. InputError where one is missing."""
    needed: dict[str, str] = {}
    for spec in fitness.slices.values():
        if spec.floor is None or spec.floor.of is None:
            continue
        of = spec.floor.of
        names = [n for n in models if n != "base"] if of == "best_source" else [of]
        if not names or any(n not in models for n in names):
            name = "NAME" if of == "best_source" else of
            problem = f"the floor of {spec.name!r} is relative to {of!r}, which is not given"
            raise InputError(problem, f"add --reference {name}=MODEL", spec.floor.where)
        needed.update({n: models[n] for n in names})
    return needed


def source_names(references: Iterable[str]) -> list[str]:
    """Returns the names that floors may refer to besides "base"."""
    return [name for name in references if name != "base"]
