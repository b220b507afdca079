"""Feasibility first: the order in which every part of evomerge compares candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.types import Outcome

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
