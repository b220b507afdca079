"""Compares two candidates on the same items: how much they differ, and whether that can be chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evomerge.scoring.stats.aggregation import ItemWeights, MeanKind
from evomerge.scoring.stats.bootstrap import counts
from evomerge.scoring.stats.standard_errors import groups, normal_quantile
from evomerge.types import ItemScore, SliceScore

RESAMPLES = 5000
MCNEMAR, BOOTSTRAP, NORMAL, EXACT = "McNemar", "paired bootstrap", "unpaired normal", "exact"

Items = Mapping[str, ItemScore]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Two candidates' scores on their common items, in the metric's own direction.

    Attributes:
        first: the first candidate's score.
        second: the second candidate's score.
        difference: first minus second.
        interval: the two-sided interval of the difference; None where it is unknown.
        p: the two-sided probability of so large a difference by chance; None where it is unknown.
        test: the test's name.
        items: the number of common items.
    """

    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None
    p: float | None
    test: str
    items: int


def compare(kind: MeanKind, first: Items, second: Items, confidence: float = 0.95) -> Comparison:
    """Compares two candidates on the items that both were scored on; `kind` is the kind of mean that the metric is.

    Where every item is 0 or 1, has the same weight and no cluster, by McNemar's exact test, with the interval of Bonett
    and Price (2012). Else by the bootstrap of pairs: items or clusters are drawn within each leaf task, and both scores
    are computed anew (Efron and Tibshirani 1993, chapters 13 and 16).
    """
    natural = replace(kind, sign=1, best=None, worst=None)
    common = {n: i for n, i in first.items() if i.score is not None and n in second and second[n].score is not None}
    item_weights = ItemWeights.of(natural, common.values()) if any(i.weight > 0 for i in common.values()) else None
    if item_weights is None:
        return Comparison(math.nan, math.nan, math.nan, None, None, "none", 0)
    a, b = item_weights.units(first), item_weights.units(second)
    values = item_weights.value(a), item_weights.value(b)
    clusters = [item.cluster for item in common.values()]
    if _are_shares(item_weights, a, b) and all(cluster is None for cluster in clusters):
        won, lost = int(np.sum(a > b)), int(np.sum(a < b))
        interval = _bonett_price(won, lost, len(a), confidence)
        return Comparison(*values, values[0] - values[1], interval, mcnemar(won, lost), MCNEMAR, len(common))
    p, between = _bootstrap(item_weights, a, b, clusters, confidence)
    return Comparison(*values, values[0] - values[1], between, p, BOOTSTRAP, len(common))


def unpaired(first: SliceScore, second: SliceScore, sign: int, confidence: float = 0.95) -> Comparison:
    """Compares two scores that are no mean of items (F1, BLEU), as if their items were different: the interval is wider
    than it could be."""
    values = sign * first.value, sign * second.value
    difference = values[0] - values[1]
    count = len(first.items)
    if first.stderr is None or second.stderr is None:
        return Comparison(*values, difference, None, None, "none", count)
    error = math.hypot(first.stderr, second.stderr)
    width = normal_quantile((1 + confidence) / 2) * error
    p = math.erfc(abs(difference) / error / math.sqrt(2)) if error > 0 else float(difference == 0)
    return Comparison(*values, difference, (difference - width, difference + width), p, NORMAL, count)


def exact(first: SliceScore, second: SliceScore, sign: int) -> Comparison:
    """Compares two sizes, of which nothing is left to chance."""
    difference = sign * (first.value - second.value)
    p = None if math.isnan(difference) else float(difference == 0)
    return Comparison(sign * first.value, sign * second.value, difference, None, p, EXACT, 0)


def mcnemar(won: int, lost: int) -> float:
    """Two-sided exact p-value (McNemar 1947): of a result as uneven as `won` heads in ``won + lost`` throws of a fair
    coin."""
    throws, ways = won + lost, 1
    total = ways
    for heads in range(min(won, lost)):
        ways = ways * (throws - heads) // (heads + 1)
        total += ways
    # Whole numbers are divided, since they may be too large for a float.
    return min(1.0, float(2 * total / 2**throws))


def _bonett_price(won: int, lost: int, n: int, confidence: float) -> tuple[float, float]:
    """The interval of a difference of paired shares (Bonett and Price 2012, equation 8). One item is added to each kind
    of disagreement, so that it has a width where the two never disagree."""
    p, q = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    width = normal_quantile((1 + confidence) / 2) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return max(-1.0, p - q - width), min(1.0, p - q + width)


def _are_shares(item_weights: ItemWeights, a: Vector, b: Vector) -> bool:
    binary = np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all()
    return bool(binary and np.ptp(item_weights.shares) < 1e-12)


def _bootstrap(
    item_weights: ItemWeights, a: Vector, b: Vector, clusters: list[str | None], confidence: float
) -> tuple[float | None, tuple[float, float] | None]:
    """Two-sided p-value and percentile interval of the difference; None below two clusters. The p-value is below
    ``1 - confidence`` where the interval has no 0."""
    if len(groups(clusters)) < 2:
        return None, None
    leaves = [name.rpartition("/")[0] for name in item_weights.names]
    shares = item_weights.shares
    parts = np.stack([shares * a, shares * b, shares], axis=1)
    sums = np.concatenate([drawn @ parts for drawn in counts(clusters, RESAMPLES, leaves)])
    sums = sums[sums[:, 2] > 0]
    means = sums[:, :2] / sums[:, 2:]
    differences = np.subtract(*(np.exp(means) if item_weights.kind.logarithmic else means).T)
    tail = min(np.sum(differences <= 0), np.sum(differences >= 0))
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(1.0, 2 * (1 + int(tail)) / (len(differences) + 1)), (float(low), float(high))
