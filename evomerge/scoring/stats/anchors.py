"""Chooses representative items (anchors): models that differ on all items differ on these by as much.

After Polo et al. 2024 ("tinyBenchmarks", arXiv:2402.14992, section 3.2) and Mencattini et al. 2025 ("MERGE3",
arXiv:2502.10436, section 3.1): items on which the known models behave alike form a cluster, some items of each are
kept, and they share its weight equally. Items on which the known models behave exactly alike are a stratum; its anchors
are allotted in proportion to its size (Cochran, Sampling Techniques, 5.2 and 5.9), since nothing is known of how
candidates differ inside it. Right and wrong answers of a few models have few such patterns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Strata:
    """Items of one pattern are a stratum.

    Attributes:
        of: [items], each item's stratum.
        distances: [strata, strata], Euclidean, between their patterns.
    """

    of: Places
    distances: Matrix

    @classmethod
    def by(cls, features: Matrix) -> Strata:
        """`features`: [items, features], how the known models do on each item."""
        patterns, of = np.unique(features, axis=0, return_inverse=True)
        squares = (patterns**2).sum(axis=1)
        distances: Matrix = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * patterns @ patterns.T, 0.0))
        np.fill_diagonal(distances, 0.0)
        return cls(of.reshape(-1).astype(np.int64), distances)


@dataclass(frozen=True)
class Clusters:
    """What scored items stand for.

    Attributes:
        of: [scored], each scored item's cluster.
        shares: [scored], each one's weight: the shares of the cluster's items, divided equally.
        sizes: [scored], how many items its cluster has.
    """

    of: Places
    shares: Vector
    sizes: Places


def anchors(strata: Strata, shares: Vector, count: int) -> list[int]:
    """Chooses `count` items; fewer anchors are a prefix of more. `shares`: [items], each one's share in the score."""
    weight = np.bincount(strata.of, weights=shares)
    left = [list(np.flatnonzero(strata.of == stratum)) for stratum in range(len(weight))]
    taken = np.zeros(len(weight), dtype=np.int64)
    nearest = np.full(len(weight), np.inf)  # each stratum's distance to the nearest one with an anchor
    chosen: list[int] = []
    while len(chosen) < min(count, len(shares)):
        # A stratum whose anchors would each stand for more than an even part gets another one ...
        spare = np.array([bool(items) for items in left])
        crowded = np.where(spare & (taken > 0), weight / np.maximum(taken, 1), -1.0)
        stratum = int(crowded.argmax())
        if crowded[stratum] <= 1 / (len(chosen) + 1) and (taken == 0).any():
            # ... else a new one gets its first, by greedy k-medoids: sum_s weight_s min(nearest_s, distance_st).
            cost: Vector = weight @ np.minimum(nearest[:, None], strata.distances)
            cost[taken > 0] = np.inf
            stratum = int(cost.argmin())
            nearest = np.minimum(nearest, strata.distances[:, stratum])
        taken[stratum] += 1
        chosen.append(int(left[stratum].pop(0)))
    return chosen


def clusters(strata: Strata, shares: Vector, scored: Places) -> Clusters:
    """What the items `scored` stand for: their strata, and those to which theirs is the nearest."""
    present, of = np.unique(strata.of[scored], return_inverse=True)
    home = strata.distances[:, present].argmin(axis=1)
    home[present] = np.arange(len(present))
    of_items = home[strata.of]
    weight = np.bincount(of_items, weights=shares, minlength=len(present))
    sizes = np.bincount(of_items, minlength=len(present))
    of = of.reshape(-1).astype(np.int64)
    return Clusters(of, (weight / np.bincount(of))[of], sizes[of].astype(np.int64))
