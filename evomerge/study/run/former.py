"""What a run keeps of another run's winner that is a model of its path (`search --from RUN` in a space of paths)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from evomerge.errors import InputError, Where
from evomerge.files.objects import WINNER, SpaceSpec
from evomerge.recipe.mergekit import parse_recipe
from evomerge.safety.read import read_text
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.manifest import Environment

_RECIPE = "recipe"
"""The key of `Environment.begin` that a run has whose path has a winner."""


@dataclass(frozen=True)
class FormerWinner:
    """The trial of another run that a path uses as a model: the id of its recipe, and the digest of its weights."""

    run: str
    trial: int
    recipe: str
    digest: str | None

    def __str__(self) -> str:
        return f"trial {self.trial} of {self.run}"

    def facts(self) -> dict[str, Any]:
        """What the run keeps of it (`Environment.begin`)."""
        return asdict(self)

    @classmethod
    def recorded(cls, environment: Environment) -> FormerWinner | None:
        begin: Mapping[str, Any] = environment.begin or {}
        return cls(**begin) if _RECIPE in begin else None


def with_recipe(spec: SpaceSpec, text: str) -> SpaceSpec:
    """The space with the model of a recipe as `winner`, first in the path unless that names it."""
    flow = spec.dataflow
    assert flow is not None
    path = flow.path if WINNER in flow.path else (WINNER, *flow.path)
    return replace(spec, dataflow=replace(flow, path=path), winner=text)


def with_recorded(spec: SpaceSpec, folder: RunFolder, environment: Environment) -> SpaceSpec:
    """The space of a run with the winner that it was launched with, if there is one. InputError where the recipe is not
    what it was."""
    former = FormerWinner.recorded(environment)
    if former is None:
        return spec
    text = read_text(folder.winner)
    if parse_recipe(text, folder.winner).id != former.recipe:
        problem = f"is not the recipe of {former}, with which the run {folder.name!r} was launched"
        raise InputError(problem, "restore it from a copy, or launch another run", Where(folder.winner))
    return with_recipe(spec, text)
