"""One trial of a study, as the store keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from evomerge.recipe.mergekit import recipe_from_data
from evomerge.recipe.recipe import Recipe
from evomerge.types import Genome, SliceScore

State = Literal["running", "complete", "pruned", "failed"]
Kind = Literal["reference", "search"]
PrunedBy = Literal["racing", "early_stop"]

UNIFORM = "uniform"
"""The label of the reference that averages all sources."""


@dataclass(frozen=True)
class Trial:
    """One genome (empty for a reference) with its recipe, and, once finished, its scores. Finished trials never change,
    but for a pruned one that is scored in full before the release (`Store.promote`).

    Attributes:
        label: for people: a reference's name, or why the genome was proposed.
        recipe_text: the recipe as JSON, which takes a fraction of its memory.
        seed: of the optimizer and of random masks.
        scores, stderr, bounds: by slice, oriented: higher is better. `bounds` are lower confidence bounds, where the
            fitness file asks for confidence.
        errors: of slices with a floor: the standard error of the distance above it, from the search items to the
            holdout items (`scoring.item_noise`); empty in older runs.
        digest: of the materialized parameters.
        seconds: of each phase.
        reason: why a failed trial failed, or why a pruned one was not scored in full.
        pruned_by: the means of pruning that ended it; its scores are predicted from the items that it was scored on.
        evaluated, items: the number of items that it was scored on, and of all.
        n_told: how many outcomes the optimizer had been told when it proposed this trial (asynchronous searches).
        order: which of these outcomes, from 0, this trial's was (asynchronous searches).
        needs_gradient: whether its outcome is to come with slopes.
        slopes: slice -> "loss" and "checked" (its proxy loss on the items that the slopes were taken on, and on the
            others), and "slopes" (by dimension).
        engines: what answered the slices that the resident model did not answer.
        generation: of the optimizer, in which it was proposed, from 1; None for references and in older runs.
        duplicate_of: the number of an earlier trial of the same recipe, whose scores it takes over.
        polished: the number of an earlier trial, whose genome it has, and whose merge it is another form of
            (`study.polish`).
    """

    number: int
    kind: Kind
    label: str
    genome: Genome
    recipe_text: str
    recipe_id: str
    seed: int
    state: State = "running"
    scores: Mapping[str, float] = field(default_factory=dict)
    stderr: Mapping[str, float | None] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    objective: float | None = None
    digest: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None
    pruned_by: PrunedBy | None = None
    evaluated: int = 0
    items: int = 0
    n_told: int | None = None
    order: int | None = None
    needs_gradient: bool = False
    slopes: Mapping[str, Mapping[str, Any]] | None = None
    duplicate_of: int | None = None
    generation: int | None = None
    polished: int | None = None
    engines: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def recipe(self) -> Recipe:
        return recipe_from_data(json.loads(self.recipe_text))

    @property
    def slice_scores(self) -> dict[str, SliceScore]:
        return {name: SliceScore(value, self.stderr.get(name)) for name, value in self.scores.items()}

    @property
    def gated(self) -> dict[str, SliceScore]:
        """The numbers that are held to the floors: the scores, or their lower confidence bounds."""
        return {name: SliceScore(self.bounds.get(name, value), None) for name, value in self.scores.items()}

    @property
    def ranked(self) -> bool:
        """Whether it has scores, measured or predicted."""
        return self.state in ("complete", "pruned") and self.objective is not None

    @property
    def items_scored(self) -> int:
        """The number of items that it was scored on: none, where its scores are another one's."""
        return 0 if self.duplicate_of is not None else self.evaluated

    @property
    def is_proposed(self) -> bool:
        """Whether an optimizer proposed it."""
        return self.kind == "search" and self.polished is None

    @property
    def lacks_gradient(self) -> bool:
        """Whether it is in flight, and its slopes are still to be computed."""
        return self.state == "running" and self.needs_gradient and self.slopes is None

    @property
    def is_parent(self) -> bool:
        """Whether it is the base or a source as it is."""
        return self.kind == "reference" and self.label != UNIFORM

    @property
    def name(self) -> str:
        """Its name in tables: a reference's label, a searched trial's number."""
        return self.label if self.kind == "reference" else f"trial {self.number}"
