"""Finalists: the trials that are scored on the holdout items, in the order in which they are.

The best by the search items is not the one to bet on. A search that goes on finds trials that stand closer and closer
above a floor, side by side, and on other items all of them miss it together. So the holdout is drawn many times by the
noise of the search items (`scoring.item_noise`), and the finalists are those of which, in the mean over the
draws, the best that passes every floor is worth most. Some are safe, others are better and may fail: a spread over the
trade-off, because the draws hold what trials have in common.

Of the holdout the choice knows nothing but the number of items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evomerge.errors import TrialError
from evomerge.scoring.item_noise import ItemNoise, Matrix, Scored
from evomerge.study.run.leaderboard import Floors
from evomerge.study.run.trial import Trial

TOP = 5
"""The most finalists."""

DRAWS = 400
SCREENED = 64
"""So many trials are looked at item by item: those with the best scores and chances by their own errors."""

_LEAST = 1e-12
"""What a trial is worth that does not pass, or gains nothing."""

_RISE = 1e-6
"""A finalist that adds a smaller share to the mean adds nothing."""

Objective = Callable[[Mapping[str, float]], float]
Passes = NDArray[np.bool_]


@dataclass(frozen=True)
class Finalist:
    """A trial with its chance to pass every floor on the holdout items, as the search items have it."""

    trial: Trial
    chance: float


@dataclass(frozen=True)
class Finalists:
    """The finalists in the order in which the holdout is asked, best scores first: the first that passes every floor is
    the winner.

    Attributes:
        chosen: the finalists.
        chance: that one of them passes.
        confidence: of each gate's bound on the holdout; None: the scores themselves are held to the floors.
    """

    chosen: tuple[Finalist, ...] = ()
    chance: float = 0.0
    confidence: float | None = None


def gate_confidence(confidence: float, finalists: int, floors: int) -> float:
    """The confidence of one gate's bound, so that all of them hold together: the error is shared out over the floors
    and over the finalists that may be tried (Bonferroni)."""
    return 1 - (1 - confidence) / max(1, finalists * floors)


def screened(trials: Sequence[Trial], floors: Floors) -> list[Trial]:
    """At most `SCREENED` of these trials, those with the best product of chance and gain first, by their own errors."""
    if not trials:
        return []
    chances = np.array([_own_chance(trial, floors) for trial in trials])
    objectives = np.array([trial.objective or 0.0 for trial in trials])
    # The worst trial that may well pass gains nothing, and a little is gained by every one that passes.
    likely = objectives[chances >= 0.05]
    gains = objectives - (likely.min() if likely.size else objectives.min())
    worth = chances * (np.maximum(gains, 0.0) + 0.05 * (np.ptp(likely) if likely.size else 1.0) + 1e-12)
    return [trials[at] for at in np.argsort(-worth, kind="stable")[:SCREENED]]


def _own_chance(trial: Trial, floors: Floors) -> float:
    """Of passing all floors, were they independent."""
    chance = 1.0
    for verdict in floors.verdicts(trial):
        if verdict.floor is not None:
            margin, error = verdict.bound - verdict.floor, trial.errors.get(verdict.slice, 0.0)
            chance *= 0.5 * math.erfc(-margin / error / math.sqrt(2)) if error > 0 else float(verdict.passed)
    return chance


def choose(
    trials: Sequence[Trial],
    scored: Sequence[Scored],
    base: Scored,
    noise: ItemNoise,
    floors: Floors,
    objective: Objective,
    *,
    confidence: float | None = None,
    others: int = 0,
    most: int = TOP,
    seed: Sequence[int] = (0,),
) -> Finalists:
    """Chooses the finalists among `trials`, whose scores and items are `scored`.

    Args:
        base: of the base: gains are counted from it.
        noise: of the items.
        floors: by the search items.
        objective: of oriented scores by slice.
        confidence: with which a winner is to pass all floors; None: its scores on the holdout have to.
        others: how many further merges are asked in any case, and may win.
        most: the most finalists.
        seed: of the draws.
    """
    if not trials:
        return Finalists()
    # 1. Draw the holdout: scores and floors, in each draw the same items for all.
    generator = np.random.default_rng(list(seed))
    drawn, of_floors = noise.draws([*scored, base], DRAWS, generator)
    scores = {name: np.array([s.scores[name].value for s in (*scored, base)]) + moved for name, moved in drawn.items()}
    floored = [gate for gate in floors.gates.values() if gate.floor is not None]
    margins = {g.slice: scores[g.slice][:, :-1] - (g.floor or 0.0) - of_floors[g.slice][:, None] for g in floored}
    # 2. What each trial is worth where it passes: its gain over the base, and as much again as the best one gains, so
    # that a winner is always better than none.
    gains = _gains(scores, objective)
    worth = gains + max(float(gains.mean(axis=0).max()), 0.0) + _LEAST
    # 3. Greedily take the trial that adds most to the mean of the best that passes. With confidence, more finalists
    # need wider bounds, and fewer may be worth more.
    best = Finalists(), -math.inf
    for count in range(1, most + 1) if confidence is not None and floored else (most,):
        level = None if confidence is None else gate_confidence(confidence, count + others, len(floored))
        gaps = [] if level is None else [noise.gaps(one, level) for one in scored]
        passes, short = np.ones(gains.shape, dtype=bool), np.zeros(gains.shape)
        for name, distances in margins.items():
            needed = np.array([gap[name] for gap in gaps]) if gaps else 0.0
            passes &= distances >= needed
            short += np.maximum(0.0, needed - distances)
        # Where none passes, the one that comes closest is worth a look.
        found = _greedy(np.where(passes, np.maximum(worth, _LEAST), _LEAST / (1 + short)), count)
        value = _best_of(passes, worth, found)
        if value > best[1] + 1e-15:
            order = sorted(found, key=lambda at: (-(trials[at].objective or 0.0), trials[at].number))
            chosen = tuple(Finalist(trials[at], float(passes[:, at].mean())) for at in order)
            best = Finalists(chosen, float(passes[:, found].any(axis=1).mean()), level), value
    return best[0]


def _gains(scores: Mapping[str, Matrix], objective: Objective) -> Matrix:
    """[draws, candidates], of the objective over the base, which is the last column."""
    names = list(scores)
    table = np.stack([scores[name] for name in names], axis=-1)
    values = np.array([[_value(objective, dict(zip(names, row, strict=True))) for row in rows] for rows in table])
    gains: Matrix = values[:, :-1] - values[:, -1:]
    return gains


def _value(objective: Objective, scores: Mapping[str, float]) -> float:
    try:
        return objective({name: float(score) for name, score in scores.items()})
    except TrialError:  # the geometric mean of a score below 0
        return objective({name: max(0.0, float(score)) for name, score in scores.items()})


def _greedy(worth: Matrix, most: int) -> list[int]:
    """The columns that, one after the other, add most to the mean of each row's largest. At least one."""
    best = np.zeros(len(worth))
    found: list[int] = []
    while len(found) < min(most, worth.shape[1]):
        means = np.maximum(worth, best[:, None]).mean(axis=0)
        means[found] = -math.inf
        at = int(means.argmax())
        if found and means[at] <= (1 + _RISE) * best.mean():
            break
        found.append(at)
        best = np.maximum(best, worth[:, at])
    return found


def _best_of(passes: Passes, worth: Matrix, found: Sequence[int]) -> float:
    return float(np.where(passes[:, found], worth[:, found], 0.0).max(axis=1).mean())
