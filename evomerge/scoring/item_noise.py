"""Item noise: how far a candidate's scores may move from the search items to the holdout items.

Both splits are samples of one kind of items. An item's influence on a score is its share times its distance from the
mean, so that other items move the score by a sum of influences with random weights (the multiplier bootstrap: van der
Vaart & Wellner 1996, "Weak Convergence and Empirical Processes", section 2.9). Candidates, slices and the floors'
references that share an item get the same weight for it: what is hard for all of them cancels out, as in a paired test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.scoring.gates import lower_bound, reference_of
from evomerge.scoring.slices import SliceInfo, SuiteInfo
from evomerge.scoring.stats.aggregation import ItemWeights
from evomerge.scoring.stats.standard_errors import groups
from evomerge.types import ItemScore, SliceScore

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_MOST = 1e3
"""Stands for an infinite unit (an answer of probability 0)."""


@dataclass(frozen=True)
class Scored:
    """What is known of a candidate: its scores, and slice -> item -> score of the search items."""

    scores: Mapping[str, SliceScore]
    items: Mapping[str, Mapping[str, ItemScore]]

    def error(self, slice_: str) -> float:
        """The standard error of a slice's score; 0 where it is unknown."""
        return self.scores[slice_].stderr or 0.0


class ItemNoise:
    """Knows the items of the search split, how many the holdout split has, and the references of the floors."""

    def __init__(self, info: SuiteInfo, references: Mapping[str, Scored]) -> None:
        """`references`: base and sources, by label, as scored on the search split."""
        self._info = info
        self._slices = {name: _SliceNoise(slice_, references) for name, slice_ in info.slices.items()}

    def errors(self, candidate: Scored) -> dict[str, float]:
        """Slice -> the standard error of the distance above its floor, from the search items to the holdout items; of
        the slices that have a floor. 0 where nothing is known of the items."""
        floored = [name for name, info in self._info.slices.items() if info.floor is not None]
        return {name: self._slices[name].error(candidate) for name in floored if name in candidate.scores}

    def draws(
        self, candidates: Sequence[Scored], count: int, generator: np.random.Generator
    ) -> tuple[dict[str, Matrix], dict[str, Vector]]:
        """Draws how holdout items may differ from the search items: what they add to each slice's score, [count,
        candidates], and to its floor, [count]."""
        scores: dict[str, Matrix] = {}
        floors: dict[str, Vector] = {}
        for pool in self._info.pools:
            weights = generator.standard_normal((count, len(self._info.slices[pool[0]].items)))
            for name in pool:
                common = generator.standard_normal((count, 2))
                scores[name], floors[name] = self._slices[name].draws(candidates, weights, common)
        return scores, floors

    def gaps(self, candidate: Scored, confidence: float) -> dict[str, float]:
        """Slice -> how far the confidence bound of a score on the holdout items will lie below it."""
        gaps = {}
        for name, score in candidate.scores.items():
            info, items = self._info.slices[name], tuple(candidate.items.get(name, {}).values())
            bound = lower_bound(SliceScore(score.value, score.stderr, items), info.sign, confidence)
            # A standard error goes with one over the root of the number of items.
            gaps[name] = (score.value - bound) * math.sqrt(len(items) / info.n_holdout) if info.n_holdout else 0.0
        return gaps


class _SliceNoise:
    """The noise of one slice. Where its score is no mean of its items, its standard error is all that is known."""

    def __init__(self, info: SliceInfo, references: Mapping[str, Scored]) -> None:
        self._info = info
        self._weights = item_weights(info, references["base"])
        # The holdout's score minus the search's: its standard error is sqrt(1 + n / n_holdout) times the search's.
        self._growth = math.sqrt(1 + len(info.items) / (info.n_holdout or len(info.items) or 1))
        self._reference, self._factor = _floor_reference(info, references)
        if self._weights is not None:
            clusters = [references["base"].items[info.name][item].cluster for item in info.items]
            self._groups = np.zeros(len(clusters), dtype=np.intp)
            for number, places in enumerate(groups(clusters)):
                self._groups[places] = number
            n = int(self._groups.max()) + 1
            self._unbiased = math.sqrt(n / (n - 1)) if n > 1 else 0.0
            self._floor = self._of_floor(info.items)  # by all items, as most candidates are scored

    def error(self, candidate: Scored) -> float:
        """Of the distance above the floor."""
        items = candidate.items.get(self._info.name, {})
        if self._weights is None or not items:
            return self._growth * math.hypot(candidate.error(self._info.name), self._error_of_floor())
        floor = self._floor if len(items) == len(self._info.items) else self._of_floor(items)
        moved = self._by_cluster(self._influences(items) - floor)
        square = math.fsum(moved**2) * self._unbiased**2 + _unseen(items)
        return self._growth * math.sqrt(square)

    def draws(self, candidates: Sequence[Scored], weights: Matrix, common: Matrix) -> tuple[Matrix, Vector]:
        """`weights`: [count, items]. `common`: [count, 2], for what does not go by items."""
        name = self._info.name
        if self._weights is None:
            errors = np.array([candidate.error(name) for candidate in candidates])
            return self._growth * common[:, :1] * errors, self._growth * common[:, 1] * self._error_of_floor()
        items = [candidate.items.get(name, {}) for candidate in candidates]
        influences = np.stack([self._by_cluster(self._influences(i)) for i in items], axis=1)
        unseen = np.sqrt([_unseen(i) for i in items])
        weights = self._unbiased * weights[:, : influences.shape[0]]
        floor = self._by_cluster(self._floor)
        return self._growth * (weights @ influences + common[:, :1] * unseen), self._growth * (weights @ floor)

    def _influences(self, items: Mapping[str, ItemScore]) -> Vector:
        """[items], by how much the oriented score moves with the weight of each item. Items that were not scored have
        none, and the others stand for them."""
        assert self._weights is not None
        units, kind = self._weights.units(items), self._weights.kind
        seen = ~np.isnan(units)
        shares = np.where(seen, self._weights.shares, 0.0)
        total = shares.sum()
        if total <= 0:
            return np.zeros(len(units))
        shares = shares / total
        units = np.nan_to_num(units, nan=0.0, posinf=_MOST, neginf=-_MOST)
        mean = math.fsum(shares * units)
        # d score / d mean: the exponential's own value where the mean is one of logarithms.
        slope = kind.sign * (math.exp(min(mean, 700.0)) if kind.logarithmic else 1.0)
        # Fewer items scatter more: their part of the noise is made that of all.
        part = math.sqrt(seen.mean())
        influences: Vector = slope * part * shares * (units - mean)
        return influences

    def _of_floor(self, items: Iterable[str]) -> Vector:
        """[items], the influences on the floor, of the reference's scores of the same items."""
        assert self._weights is not None
        if self._reference is None:
            return np.zeros(len(self._info.items))
        answers = self._reference.items.get(self._info.name, {})
        return self._factor * self._influences({item: answers[item] for item in items if item in answers})

    def _error_of_floor(self) -> float:
        return 0.0 if self._reference is None else self._factor * self._reference.error(self._info.name)

    def _by_cluster(self, influences: Vector) -> Vector:
        """[clusters], summed."""
        summed: Vector = np.bincount(self._groups, weights=influences).astype(np.float64)
        return summed


def item_weights(info: SliceInfo, base: Scored) -> ItemWeights | None:
    """How a slice's score is made of its items, by the base's; None where it is no mean of them."""
    answers = base.items.get(info.name, {})
    if info.aggregation is None or any(item not in answers for item in info.items):
        return None
    items = [answers[item] for item in info.items]
    if not any(i.weight > 0 for i in items) or any(i.score is None and i.weight > 0 for i in items):
        return None
    return ItemWeights.of(info.aggregation.kind, items)


def _floor_reference(info: SliceInfo, references: Mapping[str, Scored]) -> tuple[Scored | None, float]:
    """The reference of a relative floor, and the factor of its score in the floor."""
    floor = info.floor
    if floor is None or floor.of is None:
        return None, 0.0
    label = reference_of(info.name, floor, {name: scored.scores for name, scored in references.items()})
    if floor.margin is not None:
        return references[label], 1.0
    keep = 1.0 if floor.keep is None else floor.keep
    return references[label], keep if info.sign > 0 else 1 / keep


def _unseen(items: Mapping[str, ItemScore]) -> float:
    """The variance of one further item that is answered otherwise. Right or wrong answers can agree by chance on all of
    a few items, which then show no scatter (Agresti & Min 2005)."""
    right_or_wrong = items and all(item.score in (0.0, 1.0) for item in items.values())
    return 1 / (len(items) + 2) ** 2 if right_or_wrong else 0.0
