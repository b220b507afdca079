"""Slices that measure a candidate's size: known at once, exact, without items of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from evomerge.files.objects import FitnessSpec, Measure, SliceSpec
from evomerge.registry import PARETO
from evomerge.scoring.candidate import Candidate
from evomerge.scoring.splits import Deal
from evomerge.types import Document, ItemScore, SliceScore, SplitName

ITEM = "model"
"""The one item of a measure, in each split: so it is stored, and scored again, as other scores are."""


class MeasurePass:
    """Measures the candidate whose size it was told last."""

    deal = Deal({"search": (), "holdout": ()}, {"search": (), "holdout": ()})

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._size: Mapping[Measure, int] = {}

    def become(self, candidate: Candidate) -> None:
        """Takes in the candidate that the model has become."""
        self._size = candidate.size

    def names(self, split: SplitName) -> tuple[str, ...]:
        """The item."""
        return (ITEM,)

    def prepare(self, split: SplitName, names: frozenset[str] | None = None) -> None:
        """Does nothing: nothing is asked."""

    def run(self, split: SplitName, names: frozenset[str] | None = None) -> SliceScore:
        """The score, the same on all splits. Less is better."""
        size = self._size[self._measure]
        # No score of an item: it is no sample of anything, from which noise could be estimated.
        return SliceScore(-float(size), 0.0, (ItemScore(ITEM, None, raw=size),))

    def documents(self, split: SplitName) -> Iterator[Document]:
        """None: there is no text to read."""
        yield from ()

    def digest(self) -> str:
        """What is measured."""
        return self._measure


def mixture(fitness: FitnessSpec, spec: SliceSpec) -> str:
    """A line where the objective adds a size to scores of another kind; else empty."""
    alone = sum(other.weight > 0 for other in fitness.slices.values()) == 1
    if spec.measure is None or spec.weight <= 0 or alone or fitness.objective == PARETO:
        return ""
    problem = f"{fitness.objective} makes one number of scores and of {spec.measure}, which no unit has in common"
    return f"{problem}; give {spec.name} weight 0, or search a front (objective: pareto)"
