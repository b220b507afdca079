"""Scores of slices from scores of items: what all items give, what a part says of the whole, what it leaves possible.

Needs neither lm-eval nor a model, so that any process can aggregate items.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import TrialError
from evomerge.scoring.stats.bootstrap import mean_stderr
from evomerge.scoring.stats.standard_errors import pooled_stderr, weighted_mean_stderr
from evomerge.types import ItemScore, SliceScore

Vector = NDArray[np.float64]

Formula = Literal["mean", "bits_per_byte", "perplexity", "weighted_perplexity"]
"""lm-eval's name for how the items of a leaf task are aggregated."""


@dataclass(frozen=True)
class MeanKind:
    """Describes what kind of mean a metric is.

    Attributes:
        sign: -1 where lower is better, else 1.
        logarithmic: the mean is taken of the items' logarithms, and the score is its exponential (perplexities).
        by_size: leaf tasks count by their numbers of items, else equally.
        best: the best score that an item can have, in the metric's natural direction; None where it is unknown.
        worst: the worst score that an item can have.
    """

    sign: int
    logarithmic: bool = False
    by_size: bool = True
    best: float | None = None
    worst: float | None = None

    def unit(self, score: float) -> float:
        """Turns an item's score into what is averaged: itself or its logarithm."""
        if not self.logarithmic:
            return score
        return math.log(score) if score > 0 else -math.inf

    def mean(self, value: float) -> float:
        """The mean of units that has this oriented score."""
        return self.unit(self.sign * value)

    def value(self, mean: float) -> float:
        """Turns a mean of units into the oriented score. A predicted mean may lie beyond what is possible; the score
        does not."""
        oriented = self.sign * (math.exp(min(mean, 700.0)) if self.logarithmic else mean)
        highest = math.inf if self.best is None else self.sign * self.best
        lowest = -math.inf if self.worst is None else self.sign * self.worst
        return min(max(oriented, lowest), highest)


@dataclass(frozen=True)
class Aggregation(ABC):
    """Makes a slice's score out of the scores of all its items, wherever they were scored. Picklable.

    Attributes:
        kind: what kind of mean the score is.
    """

    kind: MeanKind

    @abstractmethod
    def score(self, items: Sequence[ItemScore]) -> SliceScore:
        """Scores the slice.

        Args:
            items: all items of a split, in the order in which they are reported.

        Raises:
            TrialError: the score is not finite.
        """


@dataclass(frozen=True)
class ItemMean(Aggregation):
    """Averages what a Python function returned for each item."""

    def score(self, items: Sequence[ItemScore]) -> SliceScore:
        scores = [float(item.raw) for item in items]
        stderr = weighted_mean_stderr(scores, clusters=[item.cluster for item in items])
        return SliceScore(self.kind.sign * math.fsum(scores) / len(scores), stderr, tuple(items))


@dataclass(frozen=True)
class TaskMean(Aggregation):
    """Aggregates the items of an lm-eval task as lm-eval does: each leaf task's items, then the leaf tasks.

    Attributes:
        formula: how the items of each leaf task are aggregated.
        metric: the metric's name in error messages.
    """

    formula: Formula
    metric: str

    def score(self, items: Sequence[ItemScore]) -> SliceScore:
        leaves: dict[str, list[ItemScore]] = {}
        for item in items:
            leaves.setdefault(item.item.rpartition("/")[0], []).append(item)
        values = [self._value(leaf, leaf_items) for leaf, leaf_items in leaves.items()]
        errors = [formula_stderr(leaf_items, self.formula) for leaf_items in leaves.values()]
        sizes = [len(leaf_items) if self.kind.by_size else 1 for leaf_items in leaves.values()]
        value = pooled_value(values, sizes)
        return SliceScore(self.kind.sign * value, pooled_stderr(errors, sizes), tuple(items))

    def _value(self, leaf: str, items: Sequence[ItemScore]) -> float:
        try:
            value = FORMULAS[self.formula]([_restored(item.raw) for item in items])
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise TrialError(f"{self.metric} of task {leaf!r} is {value}")
        return value


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _weighted_mean(pairs: Sequence[tuple[float, float]]) -> float:
    """Pairs of (loglikelihood, length)."""
    loglikelihoods, lengths = zip(*pairs, strict=True)
    return float(sum(loglikelihoods) / sum(lengths))


FORMULAS: Mapping[Formula, Callable[[Sequence[Any]], float]] = {
    "mean": _mean,
    "bits_per_byte": lambda pairs: -_weighted_mean(pairs) / math.log(2),
    "perplexity": lambda values: math.exp(-_mean(values)),
    "weighted_perplexity": lambda pairs: math.exp(-_weighted_mean(pairs)),
}
"""lm-eval 0.4.13's functions of those names (lm_eval.api.metrics), bit for bit. They take what the metric returned for
each item: a number, or a pair."""


def _restored(raw: Any) -> Any:
    """Turns `ItemScore.raw` back into a number or a pair of numbers."""
    return tuple(float(part) for part in raw) if isinstance(raw, list | tuple) else float(raw)


def pooled_value(values: Sequence[float], sizes: Sequence[float]) -> float:
    """Averages leaf tasks' scores as lm-eval does (lm_eval.api.metrics.aggregate_subtask_metrics)."""
    if len(values) == 1:
        return values[0]
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def formula_stderr(items: Sequence[ItemScore], formula: Formula) -> float | None:
    """Standard error of one leaf task's score. Items without a score or a weight tell nothing."""
    counted = [(i.score, i.weight, i.cluster) for i in items if i.score is not None and i.weight > 0]
    if not counted:
        return None
    scores, weights, clusters = zip(*counted, strict=True)
    if formula in ("perplexity", "weighted_perplexity"):
        return mean_stderr([math.log(score) for score in scores], weights, clusters, np.exp)
    return weighted_mean_stderr(scores, weights, clusters)


@dataclass(frozen=True)
class ItemWeights:
    """Makes a slice's score out of its items: ``value(sum(shares * units))``.

    Attributes:
        kind: what kind of mean the score is.
        names: the items, in the order in which they are reported.
        shares: [items], how much each counts; they sum to 1.
    """

    kind: MeanKind
    names: tuple[str, ...]
    shares: Vector

    @classmethod
    def of(cls, kind: MeanKind, items: Iterable[ItemScore]) -> ItemWeights:
        """Reads the weights from all items of one candidate. They are the same for all candidates."""
        items = list(items)
        leaves: dict[str, list[int]] = {}
        for at, item in enumerate(items):
            leaves.setdefault(item.item.rpartition("/")[0], []).append(at)
        shares = np.zeros(len(items))
        for places in leaves.values():
            weights = np.array([items[at].weight for at in places], dtype=np.float64)
            shares[places] = weights / weights.sum() * (len(places) if kind.by_size else 1)
        return cls(kind, tuple(item.item for item in items), shares / shares.sum())

    def units(self, items: Mapping[str, ItemScore]) -> Vector:
        """The units of `items` (name -> score) among all items: [items], NaN where one was not scored, 0 where one has
        no score because it counts for nothing."""
        units = np.full(len(self.names), np.nan)
        for at, name in enumerate(self.names):
            item = items.get(name)
            if item is not None:
                units[at] = 0.0 if item.score is None else self.kind.unit(item.score)
        return units

    def value(self, units: Vector) -> float:
        """The oriented score of a candidate with all units known."""
        return self.kind.value(float(self.shares @ units))

    def ceiling(self, units: Vector) -> float:
        """The best oriented score that is still possible; items with NaN are yet to be scored."""
        if self.kind.best is None:
            return math.inf if np.isnan(units).any() else self.value(units)
        return self.value(np.where(np.isnan(units), self.kind.unit(self.kind.best), units))

    def best_case(self, items: Mapping[str, ItemScore]) -> SliceScore:
        """The candidate's score if every other item gets the best score. It has no standard error, since the scatter
        of the items is open: its confidence bound is the score, and no real bound can lie above."""
        return SliceScore(self.ceiling(self.units(items)), None)
