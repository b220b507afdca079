"""Items that stand for others: chosen so that models which differ on the whole differ on them, and by as much.

After Polo et al. 2024 ("tinyBenchmarks", arXiv:2402.14992, section 3.2) and Mencattini et al. 2025 ("MERGE3",
arXiv:2502.10436, section 3.1): items on which the known models behave alike form a cluster, one item of each is kept,
and its weight is the cluster's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


def anchors(features: Matrix, shares: Vector, count: int) -> list[int]:
    """The first `count` items of an order in which each takes most from the distance of the others to those before it
    (greedy k-medoids), so that fewer anchors are a part of more.

    Args:
        features: [items, features], how the known models do on each item.
        shares: [items], each item's share in the score.
    """
    distances = _distances(features, features)
    nearest = np.full(len(shares), np.inf)
    chosen: list[int] = []
    for _ in range(min(count, len(shares))):
        bounded = np.minimum(nearest[:, None], distances)
        cost: Vector = shares @ bounded
        cost[chosen] = np.inf
        chosen.append(int(cost.argmin()))
        nearest = np.minimum(nearest, distances[:, chosen[-1]])
    return chosen


def weights(features: Matrix, shares: Vector, chosen: NDArray[np.int64]) -> Vector:
    """[chosen], what each chosen item stands for: its own share and those of the items that it is nearest to."""
    nearest = _distances(features, features[chosen]).argmin(axis=1)
    nearest[chosen] = np.arange(len(chosen))
    summed: Vector = np.bincount(nearest, weights=shares, minlength=len(chosen)).astype(np.float64)
    return summed


def _distances(left: Matrix, right: Matrix) -> Matrix:
    """Euclidean, [left, right]."""
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * left @ right.T
    distances: Matrix = np.sqrt(np.maximum(squares, 0.0))
    return distances
