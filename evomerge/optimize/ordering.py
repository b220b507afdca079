"""Fronts: candidates of which none is better than another on every objective. All objectives are maximised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Row = tuple[float, ...]


def front(values: Sequence[Row]) -> list[int]:
    """Where the rows are, in their order, that no other dominates: at least as good in each objective, and better in
    one (Deb et al. 2002, section III). Of equal rows the first stands for all; one that holds a NaN is on no front."""
    points = np.asarray(values, dtype=float)
    found = []
    for at, point in enumerate(points):
        as_good = (points >= point).all(axis=1)
        dominated = (as_good & (points > point).any(axis=1)).any()
        if not dominated and not as_good[:at].any() and not np.isnan(point).any():
            found.append(at)
    return found


def spread(values: Sequence[Row], most: int) -> list[int]:
    """Where `most` rows are, or all, that stand for all: the first one, then each time that which is farthest from
    those chosen (Gonzalez 1985, "Clustering to minimize the maximum intercluster distance"), with each objective in
    units of its range. In their order."""
    points = np.asarray(values, dtype=float)
    if len(points) <= most:
        return list(range(len(points)))
    ranges = points.max(axis=0) - points.min(axis=0)
    points = points / np.where(ranges > 0, ranges, 1.0)
    chosen = [0]
    nearest = np.full(len(points), np.inf)
    while len(chosen) < most:
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return sorted(chosen)
