"""A trial's numbers one by one, as Optuna's tools show and sort them: `score.SLICE`, `margin.SLICE`, `holdout.SLICE`.

Scores have the metric's own direction. A margin is the distance above the floor in the good direction: negative where
the floor is missed. With confidence it is that of the lower bound, which is what the floor is held to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from evomerge.scoring.gates import Verdict
from evomerge.scoring.slices import SliceInfo
from evomerge.study.run.leaderboard import Floors
from evomerge.study.run.trial import Trial


def unknown(slices: Mapping[str, SliceInfo]) -> dict[str, float]:
    """The numbers that a trial will have, before it has them. They take their place in front of longer attributes."""
    floored = [name for name, info in slices.items() if info.floor is not None]
    names = [f"score.{name}" for name in slices] + [f"margin.{name}" for name in floored]
    return dict.fromkeys(names, math.nan)


def of_search(trial: Trial, signs: Mapping[str, int], floors: Floors) -> dict[str, float]:
    """The numbers of a trial that has ended; no margins before the floors are settled."""
    scores = {f"score.{name}": signs.get(name, 1) * value for name, value in trial.scores.items()}
    verdicts = floors.verdicts(trial) if floors.settled else []
    return scores | {f"margin.{v.slice}": v.bound - v.floor for v in verdicts if v.floor is not None}


def of_holdout(trial: Trial, signs: Mapping[str, int]) -> dict[str, float]:
    """The numbers of a trial with its holdout scores."""
    return {f"holdout.{name}": signs.get(name, 1) * value for name, value in trial.scores.items()}


def constraints(verdicts: Iterable[Verdict]) -> list[float]:
    """The margins as Optuna's constraints: one for each floor, at most 0 exactly where it is met."""
    return [
        _constraint(verdict.floor - verdict.bound, verdict.passed) for verdict in verdicts if verdict.floor is not None
    ]


def _constraint(missing: float, passed: bool) -> float:
    """A floor forgives what rounding takes away."""
    if math.isnan(missing):
        return math.inf
    return min(missing, 0.0) if passed else missing
