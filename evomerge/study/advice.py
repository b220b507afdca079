"""What would help a search that ended without a winner: lower floors, more items, more trials, each as a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from evomerge.scoring.stats.standard_errors import normal_quantile
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.release import Advice
from evomerge.study.run.trial import Trial

CHANCE = 0.8
"""More items and trials are as many as give a finalist this chance to pass every floor."""

MOST_TIMES = 64
"""No more than so many times the items, or the trials, is advice."""

_LEAST_RISE = 0.05
"""A chance that rose by less while the trials doubled says nothing about further ones."""


def advise(
    search: Mapping[int, Trial],
    holdout: Leaderboard,
    floors: Floors,
    confidence: float | None,
    n_trials: int,
    best_chance: Callable[[int], float],
) -> Advice | None:
    """What would help where every trial of `holdout` that can win misses a floor there; None where there is none.

    Args:
        search: the same trials, by number, with their search scores and errors.
        floors: of the search items.
        confidence: of a gate's bound; None: scores are held to the floors.
        n_trials: how many trials there are.
        best_chance: of a finalist among the first so many trials.
    """
    near = next(holdout.merges_in_order(), None)
    if near is None:
        return None
    missed = {v.slice: v.bound for v in holdout.verdicts(near) if not v.passed}
    before, now = best_chance(n_trials // 2), best_chance(n_trials)
    times = _times_the_items(search[near.number], near, floors, holdout.floors, confidence)
    return Advice(near.number, missed, times, _trials(n_trials, before, now), (before, now))


def _times_the_items(
    searched: Trial, rescored: Trial, floors: Floors, on_holdout: Floors, confidence: float | None
) -> float | None:
    """How many times the items a trial needs (1 or more); None where it is below a floor. With k times as many, errors
    and the widths of bounds shrink by the root of k. What the trial is above a floor is taken from both splits."""
    distances = []
    for name, gate in floors.gates.items():
        floor = on_holdout.gates[name].floor
        if gate.floor is None or floor is None:
            continue
        above = (searched.scores[name] - gate.floor + rescored.scores[name] - floor) / 2
        width = rescored.scores[name] - rescored.bounds[name] if confidence is not None and rescored.bounds else 0.0
        error = searched.errors.get(name, 0.0) / math.sqrt(2)
        if error or width or above < 0:  # a size, which is exact, may stand at its floor
            distances.append((above, error, width))
    if not distances or any(above <= 0 for above, _, _ in distances):
        return None
    # P(all pass) >= CHANCE if each of the m floors passes with CHANCE^(1/m): sqrt(k) above >= z error + width.
    z = normal_quantile(CHANCE ** (1 / len(distances)))
    times = max((z * error + width) / above for above, error, width in distances) ** 2
    return math.ceil(10 * max(1.0, times)) / 10


def _trials(n_trials: int, before: float, now: float) -> int | None:
    """Where doubling the trials added to the chance, further doublings are taken to add as much."""
    rise = now - before
    if now >= CHANCE or rise < _LEAST_RISE:
        return None
    doublings = (CHANCE - now) / rise
    return None if 2**doublings > MOST_TIMES else math.ceil(round(n_trials * 2**doublings / 10, 6)) * 10
