"""What Optuna's samplers are told of outcomes: values to be maximised, and constraints, violated where above 0.

A candidate that failed has no value that anything could be learned from, and is still a lesson about where not to look:
it violates a constraint of its own, by more than any other candidate violates the floors (a hidden constraint: Lee et
al. 2011, "Optimization subject to hidden constraints via statistical emulation").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.types import Outcome

Row = tuple[float, ...]

_LEAST = 1e-9
"""What an infeasible candidate violates at least, in units of the floors' scales."""


@dataclass(frozen=True)
class OptunaTarget:
    """One candidate: `values`, one for each objective, and `constraints`, as many as its study has."""

    values: Row
    constraints: Row


def optuna_targets(outcomes: Sequence[Outcome], objectives: int, most: float = 1e9) -> list[OptunaTarget]:
    """One lesson an outcome, in their order. `objectives`: 1, or how many slices are traded off (`Outcome.values`);
    a floor that is missed by more than `most`, or by what is no number, is missed by `most`.

    Where a value is missing it is the worst that was seen; it is told of candidates that violate a constraint only. A
    constraint that nobody violates is left out.
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
    """NaN where a value is not known."""
    if objectives == 1:
        return (outcome.objective,)
    return outcome.values if len(outcome.values) == objectives else (math.nan,) * objectives


def _is_failed(outcome: Outcome, row: Row) -> bool:
    """As `ranking.rank_key` has it: a feasible candidate needs a value."""
    return outcome.failed or (outcome.feasible and any(math.isnan(value) for value in row))


def _violations(outcome: Outcome, most: float) -> Row:
    """Above 0 for each floor that is missed; of an outcome without margins, the total."""
    if outcome.feasible:
        return tuple(min(0.0, -_bounded(margin, most)) for margin in outcome.margins) or (0.0,)
    found = tuple(_bounded(-m, most) for m in outcome.margins) or (_bounded(outcome.shortfall, most),)
    return found if max(found) > 0 else (*found[:-1], _LEAST)


def _bounded(number: float, most: float) -> float:
    return most if math.isnan(number) else min(max(number, -most), most)


def _worst(rows: Sequence[Row], objectives: int) -> Row:
    """The worst number of each objective, 0 where there is none."""
    return tuple(min((row[at] for row in rows if math.isfinite(row[at])), default=0.0) for at in range(objectives))


def _completed(row: Row, worst: Row) -> Row:
    return tuple(w if math.isnan(value) else value for value, w in zip(row, worst, strict=True))
