"""A generation's candidates on a few items, then on more, then on all: each as far as it can still make a difference.

Successive elimination with paired tests on common items (Maron & Moore 1997, "The racing algorithm"; Birattari et
al. 2002, "A racing algorithm for configuring metaheuristics"), for the parents of an optimizer's next generation. A
candidate's full scores are predicted from the items that it was scored on (`scoring.stats.forecast`); scores are drawn
from the predictions, and in each draw the candidates are ranked, floors first, as everywhere.

A race is a function of its candidates' item scores: run again over the recorded ones, it decides the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.errors import InputError, TrialError
from evomerge.evaluator.jobs import EvalTask
from evomerge.optimize.ordering import RankKey, rank_key
from evomerge.scoring.stats.anchors import Matrix, Vector
from evomerge.scoring.stats.forecast import Forecast
from evomerge.study.racing.bounds import ScoreBounds
from evomerge.study.racing.rungs import ItemNames, ItemSchedule
from evomerge.study.run.items import Items
from evomerge.study.run.trial import PrunedBy, Trial
from evomerge.types import ItemScore, SliceScore

DOUBT = 0.05
"""A candidate goes on while it makes a difference with at least this probability."""

_DRAWS = 200

_WIDTHS = (1 / 4, 1 / 6)
"""The largest share of the field that goes on from each rung: candidates that differ by less than a few items can
tell are not worth all of them, and near the end of a search most do."""


@dataclass(eq=False)
class Entry:
    """One candidate in a race.

    Attributes:
        trial: in flight, or (`finished`) ended before, so that it is scored on no further items.
        items: slice -> item -> score, of the items that it was scored on.
        totals: scores of the slices that were scored whole.
        digest: of its weights, once they were materialized.
        seconds: of each phase.
        failure: why it cannot be scored.
        pruned: why it goes no further.
        pruned_by: the means of pruning that decided it.
    """

    trial: Trial
    items: dict[str, dict[str, ItemScore]] = field(default_factory=dict)
    totals: dict[str, SliceScore] = field(default_factory=dict)
    digest: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    finished: bool = False
    failure: str | None = None
    pruned: str | None = None
    pruned_by: PrunedBy | None = None

    def scored(self, names: ItemNames) -> Items:
        """Its scores on the named items: a race that is run again must not know more than it did."""
        return {n: {i: s for i, s in items.items() if i in names.get(n, ())} for n, items in self.items.items()}

    def prune(self, by: PrunedBy, reason: str, names: ItemNames) -> None:
        """It goes no further than these items. A killed process, or a promotion that a journal lost, may have left more
        of them: a race that is run again decides and predicts by those that it had."""
        self.pruned, self.pruned_by = reason, by
        self.items = {name: dict(items) for name, items in self.scored(names).items()}


@dataclass(frozen=True)
class Control:
    """A merge that was scored in full before the race: its items and its scores."""

    items: Items
    scores: Mapping[str, float]


class Race:
    """Scores a field of candidates. Entries that are finished take part with the items that they were scored on."""

    def __init__(
        self,
        schedule: ItemSchedule,
        bounds: ScoreBounds,
        controls: Sequence[Control],
        best: RankKey,
        field: Sequence[Entry],
        rivals: Sequence[Entry],
        *,
        parents: int,
        seed: Sequence[int],
        score: Callable[[Entry, ItemNames], EvalTask[None]],
        run_all: Callable[[Iterable[EvalTask[None]]], Iterable[None]],
    ) -> None:
        """Args:
        schedule: the rungs.
        bounds: of scores under the floors.
        controls: may stand in for candidates on the items that these were not scored on.
        best: the rank of the best trial so far.
        field: the candidates.
        rivals: compete with the field without running.
        parents: how many of field and rivals make a difference to the optimizer.
        seed: of the draws.
        score: scores a candidate on further items.
        run_all: does so for several candidates side by side.
        """
        self.bounds = bounds
        self._schedule, self._score_items, self._run_all = schedule, score, run_all
        self._controls, self._control, self._best = controls, controls[0], best
        self._field, self._rivals, self._parents = field, rivals, parents
        self._generator = np.random.default_rng(list(seed))

    def run(self) -> None:
        """Scores every candidate until it failed, was pruned, or has all items."""
        for share, width in zip(self._schedule.rungs, _WIDTHS, strict=False):
            rung = self._schedule.rung(share)
            list(self._run_all(self._score(entry, rung, rung) for entry in self._running()))
            self._choose_control(rung)
            self._eliminate(rung, max(1, round(width * len(self._field))))
        list(self._run_all(self.score_rest(entry) for entry in self._running()))

    def score_rest(self, entry: Entry) -> EvalTask[None]:
        """Scores a candidate on all items that are left: in parts, from the slice that is nearest to its floor."""
        everything = self._schedule.rung(1.0)
        if "early_stop" not in self._schedule.fitness.pruning:
            yield from self._score(entry, everything, everything)
            return
        size = self._schedule.fitness.batch_size
        left = {
            pool.slices: pool.chunks(frozenset(entry.items.get(pool.slices[0], ())), size)
            for pool in self._schedule.pools
        }
        while any(left.values()) and entry.pruned is None and entry.failure is None:
            slices = min((s for s, chunks in left.items() if chunks), key=lambda s: self._headroom(entry, s))
            yield from self._score(entry, dict.fromkeys(slices, left[slices].pop(0)), everything)

    def predicted(self, entry: Entry) -> dict[str, float]:
        """Every slice's score by the items that were scored: exact where all were, the control's where none was."""
        scores = {**self._control.scores, **{name: score.value for name, score in entry.totals.items()}}
        for name, forecast in self._forecasts([entry.items]).items():
            scores[name] = self._schedule.item_weights[name].kind.value(float(forecast.mean[0]))
        return scores

    def _running(self) -> list[Entry]:
        return [entry for entry in self._field if entry.pruned is None and entry.failure is None]

    def _score(self, entry: Entry, names: ItemNames, judged_by: ItemNames) -> EvalTask[None]:
        """Scores a candidate on the items of `names` that it lacks, then stops it early if a floor is out of reach by
        its items of `judged_by`."""
        missing = {name: items.difference(entry.items.get(name, ())) for name, items in names.items()}
        if any(missing.values()):
            if entry.finished:
                reason = entry.trial.reason or "finished"
                if entry.trial.state == "failed":
                    entry.failure = reason
                else:
                    entry.pruned = reason
                return
            try:
                yield from self._score_items(entry, missing)
            except (TrialError, InputError) as error:
                entry.failure = str(error)
                return
        # Exact early stop: a floor is missed even if all items to go are answered perfectly.
        left = self._schedule.count(entry.items) < self._schedule.total
        if left and "early_stop" in self._schedule.fitness.pruning:
            missed = self.bounds.missed_floor(entry.scored(judged_by), entry.totals)
            if missed:
                entry.prune("early_stop", missed, judged_by)

    def _headroom(self, entry: Entry, slices: tuple[str, ...]) -> float:
        """How far above its floor a pool's worst slice is predicted; below everything where nothing is known yet."""
        if not entry.items.get(slices[0]):
            return -np.inf
        verdicts = self.bounds.verdicts(self.predicted(entry))
        return min((v.bound - v.floor if v.floor is not None else np.inf) for v in verdicts if v.slice in slices)

    # Prediction.

    def _choose_control(self, rung: ItemNames) -> None:
        """Takes the control that answers a rung most as the field does: the smallest mean square of the differences. It
        predicts best, and one from elsewhere would let an optimizer settle on what the rung's items happen to like."""
        running = [entry.scored(rung) for entry in self._running()]
        if not running:
            return
        apart = np.zeros(len(self._controls))
        for name, forecaster in self._schedule.forecasters.items():
            weights = forecaster.item_weights
            controls = np.array([weights.units(control.items[name]) for control in self._controls])
            field = _bounded(np.array([weights.units(items.get(name, {})) for items in running]), controls[0])
            scored = ~np.isnan(field).any(axis=0)
            squares = ((field[:, None, scored] - controls[None][:, :, scored]) ** 2).mean(axis=(0, 2))
            apart += squares / (squares.mean() or 1.0)
        self._control = self._controls[int(apart.argmin())]

    def _forecasts(self, candidates: Sequence[Items]) -> dict[str, Forecast]:
        """Predicts each slice's mean for candidates that were scored on these items."""
        forecasts = {}
        for name, forecaster in self._schedule.forecasters.items():
            weights = self._schedule.item_weights[name]
            units = np.array([weights.units(items.get(name, {})) for items in candidates])
            control = weights.units(self._control.items[name])
            forecasts[name] = forecaster.forecast(_bounded(units, control), control)
        return forecasts

    # Elimination.

    def _eliminate(self, rung: ItemNames, most: int) -> None:
        """Lets the `most` promising candidates go on that could be the best so far, or may or may not be parents."""
        # Not by all their items: a candidate that a killed process left with more of them takes the place that it had.
        running = self._running()
        if not running or rung == self._schedule.rung(1.0):
            return
        able = [entry for entry in (*self._field, *self._rivals) if entry.failure is None]
        best, parent = self._chances(able, rung)
        chances = dict(zip(able, zip(best, parent, strict=True), strict=True))
        doubtful = [e for e in running if chances[e][0] >= DOUBT or DOUBT <= chances[e][1] <= 1 - DOUBT]
        doubtful.sort(key=lambda entry: chances[entry], reverse=True)
        for entry in running:
            if entry not in doubtful:
                among = "among" if chances[entry][1] > 0.5 else "not among"
                entry.prune("racing", f"{among} the best {self._parents}", rung)
            elif entry not in doubtful[:most]:
                entry.prune("racing", "others were more promising", rung)

    def _chances(self, entries: Sequence[Entry], rung: ItemNames) -> tuple[Vector, Vector]:
        """[entries], the probabilities of being better than the best so far, and of being a parent."""
        best, parent = np.zeros(len(entries)), np.zeros(len(entries))
        for keys in self._drawn_keys(entries, rung):
            order = sorted(range(len(entries)), key=lambda at: (keys[at], at))
            parent[order[: self._parents]] += 1 / _DRAWS
            best += np.array([key < self._best for key in keys]) / _DRAWS
        return best, parent

    def _drawn_keys(self, entries: Sequence[Entry], rung: ItemNames) -> list[list[RankKey]]:
        """[draws][entries], the ranks if the scores were those drawn. Candidates on common items are drawn jointly,
        with the covariance of their differences: a paired test."""
        candidates = [entry.items if entry in self._rivals else entry.scored(rung) for entry in entries]
        forecasts = self._forecasts(candidates)
        drawn = {name: forecast.draws(_DRAWS, self._generator) for name, forecast in forecasts.items()}
        # The scores of a candidate with all items are the same in each draw, and so is its rank.
        varies = np.any([np.ptp(means, axis=0) > 0 for means in drawn.values()], axis=0)
        fixed = {at: self._key(e, drawn, 0, at) for at, e in enumerate(entries) if drawn and not varies[at]}
        return [
            [fixed[at] if at in fixed else self._key(entry, drawn, draw, at) for at, entry in enumerate(entries)]
            for draw in range(_DRAWS)
        ]

    def _key(self, entry: Entry, drawn: Mapping[str, Matrix], draw: int, at: int) -> RankKey:
        scores = {**self._control.scores, **{name: score.value for name, score in entry.totals.items()}}
        for name, means in drawn.items():
            scores[name] = self._schedule.item_weights[name].kind.value(float(means[draw, at]))
        return rank_key(self.bounds.outcome(scores))


def _bounded(units: Matrix, control: np.ndarray) -> Matrix:
    """Infinite units (an answer of probability 0) as ones far beyond the control's worst."""
    worst = 1e3 * (1.0 + float(np.abs(control).max(initial=0.0)))
    return np.clip(units, -worst, worst)
