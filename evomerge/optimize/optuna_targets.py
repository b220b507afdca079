"""Outcomes as Optuna's samplers take them: values to be maximised, and constraints, violated where above 0.

A failed candidate has no value to learn from, but it says where not to look. It violates a constraint of its own, by
more than any other candidate violates the floors (a hidden constraint: Lee et al. 2011, "Optimization subject to hidden
constraints via statistical emulation").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.types import Outcome

Row = tuple[float, ...]

_LEAST = 1e-9
"""The least violation of an infeasible candidate, in units of the floors' scales."""


@dataclass(frozen=True)
class OptunaTarget:
    """One candidate. `values`: one for each objective. `constraints`: as many as its study has."""

    values: Row
    constraints: Row


def optuna_targets(outcomes: Sequence[Outcome], objectives: int, most: float = 1e9) -> list[OptunaTarget]:
    """One target for each outcome, in their order.

    Args:
        objectives: 1, or how many slices are traded off (`Outcome.values`).
        most: the largest violation of a floor, also where the margin is not a number.

    A missing value is the worst known one: only candidates that violate a constraint get it. A constraint that no
    candidate violates is left out.
    """
    rows = [_values(outcome, objectives) for outcome in outcomes]
    failed = [_is_failed(outcome, row) for outcome, row in zip(outcomes, rows, strict=True)]
    violations = [() if f else _violations(o, most) for o, f in zip(outcomes, failed, strict=True)]
    width = max(map(len, violations), default=0)
    total = max((math.fsum(v for v in row if v > 0) for row in violations), default=0.0)
    constraints = [
        (*row, *[0.0] * (width - len(row)), 1.0 + total if f else -1.0)
        for row, f in zip(violations, failed, strict=True)
    ]
    used = [at for at in range(width + 1) if any(row[at] > 0 for row in constraints)]
    worst = _worst([row for row, f in zip(rows, failed, strict=True) if not f], objectives)
    return [
        OptunaTarget(worst if f else _completed(row, worst), tuple(constraint[at] for at in used))
        for row, f, constraint in zip(rows, failed, constraints, strict=True)
    ]


def _values(outcome: Outcome, objectives: int) -> Row:
    """The objectives; NaN where one is not known."""
    if objectives == 1:
        return (outcome.objective,)
    return outcome.values if len(outcome.values) == objectives else (math.nan,) * objectives


def _is_failed(outcome: Outcome, row: Row) -> bool:
    """As in `ordering.rank_key`: a feasible candidate needs a value."""
    return outcome.failed or (outcome.feasible and any(math.isnan(value) for value in row))


def _violations(outcome: Outcome, most: float) -> Row:
    """Above 0 for each floor that is missed; the total where an outcome has no margins."""
    if outcome.feasible:
        return tuple(min(0.0, -_bounded(margin, most)) for margin in outcome.margins) or (0.0,)
    violations = tuple(_bounded(-m, most) for m in outcome.margins) or (_bounded(outcome.shortfall, most),)
    return violations if max(violations) > 0 else (*violations[:-1], _LEAST)


def _bounded(number: float, most: float) -> float:
    return most if math.isnan(number) else min(max(number, -most), most)


def _worst(rows: Sequence[Row], objectives: int) -> Row:
    """The worst number of each objective, 0 where there is none."""
    return tuple(min((row[at] for row in rows if math.isfinite(row[at])), default=0.0) for at in range(objectives))


def _completed(row: Row, worst: Row) -> Row:
    return tuple(w if math.isnan(value) else value for value, w in zip(row, worst, strict=True))
