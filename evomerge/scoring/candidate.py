"""What slices may know of a candidate besides the model that it has become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from evomerge.files.objects import Measure
from evomerge.recipe.recipe import Recipe


@dataclass(frozen=True)
class Candidate:
    """One candidate.

    Attributes:
        recipe: makes it.
        digest: of its weights in memory.
        device: where they were merged.
        size: in layers and parameters.
    """

    recipe: Recipe
    digest: str
    device: str
    size: Mapping[Measure, int]


@runtime_checkable
class TakesCandidate(Protocol):
    """A source that goes by more than the model."""

    def become(self, candidate: Candidate) -> None:
        """Takes in the candidate that the model has become."""
        ...
