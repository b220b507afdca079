"""How candidates compare: the feasibility-first order, which every part of evomerge uses, and fronts of trade-offs.

Light: numpy is imported where it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.types import Outcome

Row = tuple[float, ...]
RankKey = tuple[int, float, float]

FEASIBLE, INFEASIBLE, FAILED = 0, 1, 2


def rank_key(outcome: Outcome) -> RankKey:
    """A key that sorts better candidates first (Deb 2000, "An efficient constraint handling method for genetic
    algorithms", section 3): feasible ones by objective; then infeasible ones by shortfall, then by objective;
    failed ones last. A feasible candidate whose objective is not a number counts as failed."""
    if outcome.failed or (outcome.feasible and math.isnan(outcome.objective)):
        return FAILED, 0.0, 0.0
    if outcome.feasible:
        return FEASIBLE, 0.0, -outcome.objective
    return INFEASIBLE, _last_if_nan(outcome.shortfall), _last_if_nan(-outcome.objective)


def _last_if_nan(number: float) -> float:
    return math.inf if math.isnan(number) else number


def ranks(outcomes: Sequence[Outcome]) -> list[int]:
    """The rank of each outcome: 0 is the best, and equal ones share a rank."""
    keys = [rank_key(outcome) for outcome in outcomes]
    place = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return [place[key] for key in keys]


def front(values: Sequence[Row]) -> list[int]:
    """The numbers of the rows that no other row dominates, in their order. All objectives are maximised.

    A row dominates another one where it is at least as good in each objective, and better in one (Deb et al. 2002,
    section III). Of equal rows the first stands for all. A row with a NaN is on no front.
    """
    import numpy as np

    points = np.asarray(values, dtype=float)
    numbers = []
    for at, point in enumerate(points):
        as_good = (points >= point).all(axis=1)
        dominated = (as_good & (points > point).any(axis=1)).any()
        if not dominated and not as_good[:at].any() and not np.isnan(point).any():
            numbers.append(at)
    return numbers


def spread(values: Sequence[Row], most: int) -> list[int]:
    """The numbers of at most `most` rows that stand for all, in their order: the first one, then each time the one that
    is farthest from the chosen ones (Gonzalez 1985, "Clustering to minimize the maximum intercluster distance"), with
    each objective in units of its range."""
    import numpy as np

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
