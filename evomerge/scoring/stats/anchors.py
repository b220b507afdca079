"""Chooses representative items (anchors): models that differ on all items differ on these by as much.

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
    """Chooses `count` items by greedy k-medoids; fewer anchors are a prefix of more.

    Args:
        features: [items, features], how the known models do on each item.
        shares: [items], each item's share in the score.
    """
    distances = _distances(features, features)
    nearest = np.full(len(shares), np.inf)  # each item's distance to the nearest anchor
    medoids: list[int] = []
    for _ in range(min(count, len(shares))):
        # Each item's cost as the next anchor: sum_i shares_i min(nearest_i, distance_ij).
        bounded = np.minimum(nearest[:, None], distances)
        cost: Vector = shares @ bounded
        cost[medoids] = np.inf
        medoids.append(int(cost.argmin()))
        nearest = np.minimum(nearest, distances[:, medoids[-1]])
    return medoids


def weights(features: Matrix, shares: Vector, medoids: NDArray[np.int64]) -> Vector:
    """Each anchor's weight: [medoids], the shares of the items that it is nearest to, its own included."""
    nearest = _distances(features, features[medoids]).argmin(axis=1)
    nearest[medoids] = np.arange(len(medoids))
    summed: Vector = np.bincount(nearest, weights=shares, minlength=len(medoids)).astype(np.float64)
    return summed


def _distances(left: Matrix, right: Matrix) -> Matrix:
    """Euclidean, [left, right]."""
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * left @ right.T
    distances: Matrix = np.sqrt(np.maximum(squares, 0.0))
    return distances
