"""What steps along the gradient were worth, by groups of genes.

The objective's slopes along the way, times how far each gene went, add up to what the way gained (integrated gradients:
Sundararajan et al. 2017, arXiv:1703.01365, section 3, along the path that was taken). Slopes are those of the
surrogates, so the sum is near the gain in the metrics, and equal to it where they are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.optimize.gradient_start import layer_name

if TYPE_CHECKING:
    from evomerge.study.run.trial import Trial
    from evomerge.study.session import Session
    from evomerge.types import Dimension

FACT = "gradient"
"""Under which the store keeps them."""


@dataclass(frozen=True)
class Contributions:
    """From trial `first` to trial `last`, the best step: `objective` at both, and what each group of genes gained,
    (gene, source, where) -> part; source and where are empty for genes that have one value for all."""

    first: int
    last: int
    objective: tuple[float, float]
    parts: dict[tuple[str, str, str], float]

    def to_data(self) -> dict[str, Any]:
        rows = [[*group, part] for group, part in self.parts.items()]
        return {"first": self.first, "last": self.last, "objective": list(self.objective), "parts": rows}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Contributions:
        parts = {(gene, source, place): part for gene, source, place, part in data["parts"]}
        return cls(data["first"], data["last"], (data["objective"][0], data["objective"][1]), parts)


def contributions(session: Session) -> Contributions | None:
    """Of all steps up to the best of them by the search items; None where none was taken."""
    steps = [t for t in session.store.trials() if t.slopes and t.ranked]
    if not steps:
        return None
    best = next(t for t in session.floors(steps).ranked() if t.ranked)
    way = [t for t in steps if t.number <= best.number]
    dimensions = session.plan.space.dimensions
    gained = _gained(session, way, dimensions)
    parts: dict[tuple[str, str, str], float] = {}
    for dimension, part in zip(dimensions, gained, strict=True):
        group = (dimension.gene, dimension.place.get("sources", ""), layer_name(dimension))
        parts[group] = parts.get(group, 0.0) + part
    return Contributions(way[0].number, best.number, (way[0].objective or 0.0, best.objective or 0.0), parts)


def _gained(session: Session, way: Sequence[Trial], dimensions: Sequence[Dimension]) -> list[float]:
    """[D], by the trapezoidal rule."""
    outcomes = [session.outcome(t) for t in way]
    slopes = np.array([o.slopes.objective for o in outcomes if o.slopes is not None])
    places = np.array([[0.0 if d.choices else float(t.genome[d.key]) for d in dimensions] for t in way])
    found: list[float] = (np.diff(places, axis=0) * (slopes[1:] + slopes[:-1]) / 2).sum(axis=0).tolist()
    return found
