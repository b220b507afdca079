"""One trial of a study, as the store keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.recipe.mergekit import recipe_from_data
from evomerge.recipe.recipe import Recipe
from evomerge.types import Genome, SliceScore

State = Literal["running", "complete", "stopped", "failed"]
UNIFORM = "uniform"
"""The label of the reference that averages all sources."""

Kind = Literal["reference", "search"]


@dataclass(frozen=True)
class Trial:
    """One genome (empty for a reference) with its recipe, and, once finished, its scores.

    `scores`, `stderr` and `bounds` (lower confidence bounds, where the fitness file asks for confidence) are
    oriented: higher is better. `digest` is that of the materialized parameters;
    `seconds` the time of each phase; `reason` why a failed trial failed, or why a stopped one was not scored in full
    (its scores are then predicted from the items that it was scored on), and `by` which pruner stopped it.
    `evaluated` is the number of items that it was scored on, `items` how many there are. In an asynchronous search,
    `told` is how many outcomes its optimizer had been told when it proposed this trial, and `place` which of them, from
    0, this trial's was. `sloped`: its slopes are wanted; `slopes` holds them once they are found: slice -> "loss" and
    "checked" (its surrogate on the items that the slopes were taken on, and on the others), "slopes" (by dimension).
    Finished trials never change.
    """

    number: int
    kind: Kind
    label: str
    genome: Genome
    recipe_data: list[dict[str, Any]]
    recipe_id: str
    seed: int
    state: State = "running"
    scores: Mapping[str, float] = field(default_factory=dict)
    stderr: Mapping[str, float | None] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    objective: float | None = None
    digest: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    by: str = ""
    evaluated: int = 0
    items: int = 0
    told: int | None = None
    place: int | None = None
    sloped: bool = False
    slopes: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def recipe(self) -> Recipe:
        return recipe_from_data(self.recipe_data)

    @property
    def slice_scores(self) -> dict[str, SliceScore]:
        return {name: SliceScore(value, self.stderr.get(name)) for name, value in self.scores.items()}

    @property
    def gated(self) -> dict[str, SliceScore]:
        """What is held to the floors: the scores, or their lower confidence bounds."""
        return {name: SliceScore(self.bounds.get(name, value), None) for name, value in self.scores.items()}

    @property
    def ranked(self) -> bool:
        """Whether it has scores, measured or predicted."""
        return self.state in ("complete", "stopped") and self.objective is not None

    @property
    def lacks_slopes(self) -> bool:
        """Whether it is in flight, and its slopes are still to be found."""
        return self.state == "running" and self.sloped and self.slopes is None

    @property
    def is_parent(self) -> bool:
        """The base or a source as it is."""
        return self.kind == "reference" and self.label != UNIFORM

    @property
    def name(self) -> str:
        """How tables call it: a reference by its label, a searched trial by its number."""
        return self.label if self.kind == "reference" else f"trial {self.number}"
