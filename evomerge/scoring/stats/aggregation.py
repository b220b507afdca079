"""A score as a weighted mean of its items: what a part of them says of the whole, and what it leaves possible."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.types import ItemScore, SliceScore

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class MeanKind:
    """What kind of mean a metric is.

    `sign` is -1 where lower is better. `logarithmic`: the mean is one of the items' logarithms, and the score its
    exponential (perplexities). `by_size`: leaf tasks count by their numbers of items, else equally. `best` and `worst`
    are the scores between which an item's lies (natural direction), None where that is unknown.
    """

    sign: int
    logarithmic: bool = False
    by_size: bool = True
    best: float | None = None
    worst: float | None = None

    def unit(self, score: float) -> float:
        """What is averaged: an item's score or its logarithm."""
        if not self.logarithmic:
            return score
        return math.log(score) if score > 0 else -math.inf

    def value(self, mean: float) -> float:
        """The oriented score of a mean of units; a predicted one may lie beyond what is possible."""
        oriented = self.sign * (math.exp(min(mean, 700.0)) if self.logarithmic else mean)
        highest = math.inf if self.best is None else self.sign * self.best
        lowest = -math.inf if self.worst is None else self.sign * self.worst
        return min(max(oriented, lowest), highest)


@dataclass(frozen=True)
class ItemWeights:
    """How a slice's score is made of its items: ``value(sum(shares * units))``. Arrays have one entry an item, in the
    order in which the items are reported; the shares sum to 1."""

    mixture: MeanKind
    names: tuple[str, ...]
    shares: Vector

    @classmethod
    def of(cls, mixture: MeanKind, items: Iterable[ItemScore]) -> ItemWeights:
        """Out of the items of a candidate that was scored in full: who they are and what weight each has is the same
        for all candidates."""
        items = list(items)
        leaves: dict[str, list[int]] = {}
        for at, item in enumerate(items):
            leaves.setdefault(item.item.rpartition("/")[0], []).append(at)
        shares = np.zeros(len(items))
        for places in leaves.values():
            weights = np.array([items[at].weight for at in places], dtype=np.float64)
            shares[places] = weights / weights.sum() * (len(places) if mixture.by_size else 1)
        return cls(mixture, tuple(item.item for item in items), shares / shares.sum())

    def units(self, items: Mapping[str, ItemScore]) -> Vector:
        """The units of the items that were seen; NaN for the others. Items that count for nothing are 0."""
        found = np.full(len(self.names), np.nan)
        for at, name in enumerate(self.names):
            item = items.get(name)
            if item is not None:
                found[at] = 0.0 if item.score is None else self.mixture.unit(item.score)
        return found

    def value(self, units: Vector) -> float:
        """The oriented score of a candidate all of whose units are known."""
        return self.mixture.value(float(self.shares @ units))

    def ceiling(self, units: Vector) -> float:
        """The best oriented score that is still possible, the items with NaN being unseen."""
        if self.mixture.best is None:
            return math.inf if np.isnan(units).any() else self.value(units)
        return self.value(np.where(np.isnan(units), self.mixture.unit(self.mixture.best), units))

    def best_case(self, items: Mapping[str, ItemScore]) -> SliceScore:
        """The candidate as it would be if every unseen item went as well as it can. No confidence bound lies above the
        score, so that it serves for that, too: how the items will scatter is open."""
        return SliceScore(self.ceiling(self.units(items)), None)
