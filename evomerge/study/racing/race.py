"""A generation's candidates on a few items, then on more, then on all: each as far as it can still make a difference.

Successive elimination with paired tests on common items (Maron & Moore 1997, "The racing algorithm"; Birattari et
al. 2002, "A racing algorithm for configuring metaheuristics"), for the parents of an optimizer's next generation. A
candidate's full scores are predicted from the items that it was scored on (`scoring.stats.forecast`); scores are drawn
from the predictions, and in each draw the candidates are ranked, floors first, as everywhere.

A race is a function of its candidates' item scores: run again over the recorded ones, it decides the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import NormalDist

import numpy as np

from evomerge.errors import InputError, TrialError
from evomerge.evaluator.jobs import EvalTask
from evomerge.optimize.ordering import FEASIBLE, RankKey
from evomerge.scoring.stats.anchors import Matrix, Vector
from evomerge.scoring.stats.forecast import Forecast
from evomerge.study.racing.bounds import ScoreBounds
from evomerge.study.racing.rungs import ItemNames, ItemSchedule
from evomerge.study.run.items import Items
from evomerge.study.run.trial import PrunedBy, Trial
from evomerge.types import ItemScore, SliceScore

DOUBT = 0.05
"""A question (best so far? a parent? feasible?) is open while its answer has at least this probability to be wrong."""

NOISE = 0.5
"""The variance of predictions' errors, in units of that of the true scores across candidates, with which predictions
are as good as the true scores to an optimizer (they correlate by 0.82)."""

_DRAWS = 200
_NORMAL = NormalDist()

_TRIED = 0.2
"""The rung on which the latest merges show how many items a race begins with."""

_ENOUGH = 0.4
"""With so many of the items, predictions of all of them err by little more than all of them do for others like them: by
``1 / n - 1 / N`` against ``1 / N``. Ranks are not worth more, as they would be those of these items."""

_FEWEST = 4
"""Fewer merges that were scored in full do not say how far apart merges are."""


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
        new: of these, what is not written down yet.
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
    new: dict[str, list[ItemScore]] = field(default_factory=dict)
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
    """A merge that was scored in full before the race: the units of its items ([items], by slice), and its scores."""

    units: Mapping[str, Vector]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Chances:
    """Probabilities of a candidate, by the scores that are drawn for it: of being the best of all, those before the
    race included; a parent; feasible; and [draws] its rank among the others."""

    best: float
    parent: float
    feasible: float
    ranks: Vector


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
        signals: Mapping[str, float],
        *,
        parents: int,
        seed: Sequence[int],
        score: Callable[[Entry, ItemNames], EvalTask[None]],
        keep: Callable[[Entry], None],
        run_all: Callable[[Iterable[EvalTask[None]]], Iterable[None]],
    ) -> None:
        """Args:
        schedule: the rungs.
        bounds: of scores under the floors.
        controls: may stand in for candidates on the items that these were not scored on.
        best: the rank of the best trial so far.
        field: the candidates.
        rivals: compete with the field without running.
        signals: by how much the latest candidates' scores vary, in units of the items, by slice; empty where there are
            too few.
        parents: how many of field and rivals make a difference to the optimizer.
        seed: of the draws.
        score: scores a candidate on further items.
        keep: writes down what was scored since it was called last.
        run_all: does so for several candidates side by side.
        """
        self.bounds = bounds
        self._schedule, self._score_items, self._keep, self._run_all = schedule, score, keep, run_all
        self._controls, self._control, self._best = controls, controls[0], best
        self._components: dict[str, Matrix | None] = {}  # ways in which candidates differ from the control
        self._field, self._rivals, self._parents = field, rivals, parents
        self._signals = signals
        self._open: set[Entry] = set()  # they may be parents, and their ranks are mostly noise so far
        self._generator = np.random.default_rng(list(seed))

    def run(self) -> None:
        """Scores every candidate until it failed, was pruned, or has all items."""
        share = self._schedule.next_rung({}, self._first_part)
        while share < 1.0 and self._running():
            rung = self._schedule.rung(share)
            list(self._run_all(self._score(entry, rung, keep=True) for entry in self._running()))
            self._choose_control(rung)
            share = self._schedule.next_rung(rung, self._eliminate(rung))
        # Parts that may show that a floor is out of reach cost a pass each: not for those that stood out on a rung.
        whole = partial(self._score, names=self._schedule.rung(1.0), keep=True)
        list(self._run_all(map(whole if self._schedule.rungs else self.score_rest, self._running())))

    def score_rest(self, entry: Entry) -> EvalTask[None]:
        """Scores a candidate on all items that are left: in parts, from the slice that is nearest to its floor. They
        are kept at once, as a candidate that is scored as a whole keeps them."""
        everything = self._schedule.rung(1.0)
        if "early_stop" not in self._schedule.fitness.pruning or self._first_part == 1.0:
            yield from self._score(entry, everything)
        else:
            yield from self._score(entry, self._schedule.rung(0.0))
            size = self._schedule.fitness.batch_size
            left = {
                pool.slices: pool.chunks(frozenset(entry.items.get(pool.slices[0], ())), size)
                for pool in self._schedule.pools
            }
            self._stop_early(entry, everything)
            while any(left.values()) and entry.pruned is None and entry.failure is None:
                slices = min((s for s, chunks in left.items() if chunks), key=lambda s: self._headroom(entry, s))
                yield from self._score(entry, dict.fromkeys(slices, left[slices].pop(0)))
                self._stop_early(entry, everything)
        self._keep(entry)

    def predicted(self, entry: Entry, shrunk: bool = False) -> dict[str, float]:
        """Every slice's score by the items that were scored: exact where all were, the control's where none was. With
        `shrunk`, candidates of the field that differ by chance only are drawn together (`Forecast.shrunk`)."""
        scores = {**self._control.scores, **{name: score.value for name, score in entry.totals.items()}}
        able = [other for other in self._field if other.failure is None] if shrunk else [entry]
        for name, forecast in self._forecasts([other.items for other in able]).items():
            mean = (forecast.shrunk() if shrunk else forecast.mean)[able.index(entry)]
            scores[name] = self._schedule.item_weights[name].kind.value(float(mean))
        return scores

    def _running(self) -> list[Entry]:
        return [entry for entry in self._field if entry.pruned is None and entry.failure is None]

    def _score(self, entry: Entry, names: ItemNames, keep: bool = False) -> EvalTask[None]:
        """Scores a candidate on the items of `names` that it lacks."""
        missing = {name: items.difference(entry.items.get(name, ())) for name, items in names.items()}
        if entry.failure is not None or entry.pruned is not None or not any(missing.values()):
            return
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
        if keep:
            self._keep(entry)

    def _stop_early(self, entry: Entry, judged_by: ItemNames) -> None:
        """Exact early stop: a floor is missed even if all items to go are answered perfectly, by the items of
        `judged_by`. The candidate goes on all the same while its other scores are not known well enough to be told."""
        fitness, scored = self._schedule.fitness, entry.scored(judged_by)
        if entry.failure is not None or entry.pruned is not None or "early_stop" not in fitness.pruning:
            return
        known = entry not in self._open if len(self._field) > 1 else self._error(scored) <= NOISE
        if known and self._schedule.count(scored) < self._schedule.total:
            missed = self.bounds.missed_floor(scored, entry.totals)
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
        apart, known = np.zeros(len(self._controls)), dict[str, tuple[Matrix, np.ndarray]]()
        for name, weights in self._schedule.item_weights.items():
            controls = np.array([control.units[name] for control in self._controls])
            field = _bounded(np.array([weights.units(items.get(name, {})) for items in running]), controls[0])
            scored = np.asarray(~np.isnan(field).any(axis=0))
            known[name] = controls, scored
            squares = ((field[:, None, scored] - controls[None][:, :, scored]) ** 2).mean(axis=(0, 2))
            apart += squares / (squares.mean() or 1.0)
        self._control = self._controls[int(apart.argmin())]
        for name, forecaster in self._schedule.forecasters.items():
            controls, scored = known[name]
            self._components[name] = forecaster.components(controls, self._control.units[name], scored)

    def _forecasts(self, candidates: Sequence[Items]) -> dict[str, Forecast]:
        """Predicts each slice's mean for candidates that were scored on these items."""
        forecasts = {}
        for name, forecaster in self._schedule.forecasters.items():
            weights = self._schedule.item_weights[name]
            units = np.array([weights.units(items.get(name, {})) for items in candidates])
            control = self._control.units[name]
            forecasts[name] = forecaster.forecast(_bounded(units, control), control, self._components.get(name))
        return forecasts

    # Elimination.

    def _eliminate(self, rung: ItemNames) -> float:
        """Prunes the candidates about which no question is open. Returns the part of the items that is likely to
        answer half of what is open about the others."""
        # Not by all their items: a candidate that a killed process left with more of them takes the place that it had.
        running = self._running()
        part = self._schedule.part(rung)
        if not running or part == 1.0:
            return 1.0
        able = [entry for entry in (*self._field, *self._rivals) if entry.failure is None]
        chances = self._chances(able, rung)
        needs = {entry: self._needed(chances[entry], part) for entry in running}
        noise = self._noise(chances, rung)
        # Which parent is it? And where it comes alone: what are its scores? Open while that is mostly noise.
        alone = len(self._field) == 1
        # Behind `_ENOUGH` the noise is less than that of the items themselves, and the rest says nothing of others.
        mostly_noise = noise > NOISE and (alone or part < _ENOUGH)
        self._open = {e for e in running if mostly_noise and (alone or chances[e].parent >= DOUBT)}
        for entry in running:
            if entry in self._open:
                more = _part(part, NOISE / noise)
                needs[entry] = max(needs[entry], more if alone else min(more, _ENOUGH))
            self._stop_early(entry, rung)
        running = self._running()
        if running and not alone:
            # One of each generation may be scored in full, the best: later ones are predicted from it.
            leader = max(running, key=lambda entry: (chances[entry].best, chances[entry].parent))
            if chances[leader].best >= DOUBT or not any(needs.values()):
                needs[leader] = 1.0
        going = [entry for entry in running if needs[entry] > 0.0]
        for entry in running:
            if entry not in going:
                among = "among" if chances[entry].parent > 0.5 else "not among"
                entry.prune("racing", f"{among} the best {self._parents}", rung)
        return sorted(needs[entry] for entry in going)[(len(going) - 1) // 2] if going else 1.0

    def _needed(self, chance: Chances, part: float) -> float:
        """The part of the items that is likely to answer every open question about a candidate; 0 where none is."""
        if len(self._field) == 1 and max(chance.best, chance.parent) >= DOUBT:
            return 1.0  # no prediction will do: the optimizer is told of no other good one
        promising = chance.best >= DOUBT or chance.parent >= 0.5
        questions = [chance.feasible] if promising and DOUBT <= chance.feasible <= 1 - DOUBT else []
        # A question with the probability p is 0 by |z(p)| standard errors; these shrink until that is enough.
        enough = abs(_NORMAL.inv_cdf(DOUBT))
        return max(
            (_part(part, (_NORMAL.inv_cdf(min(max(p, 0.001), 0.999)) / enough) ** 2) for p in questions), default=0.0
        )

    def _noise(self, chances: Mapping[Entry, Chances], rung: ItemNames) -> float:
        """The variance of the predictions' errors in units of that of the true scores: of ranks, in a generation."""
        if len(self._field) == 1:
            return self._error(self._field[0].scored(rung))
        ranks = np.array([chances[entry].ranks for entry in chances]).T
        apart = ranks - ranks.mean(axis=1, keepdims=True)
        mean = apart.mean(axis=0)
        scatter = float((apart**2).sum(axis=1).mean())
        # With signal t^2 and noise s^2 the predictions vary by t^2 + s^2, and draws around them by t^2 + 2 s^2.
        common = float(mean @ mean) / scatter if scatter > 0 else 1.0
        reliable = 2 - 1 / common if common > 0 else 0.0
        return 1 / reliable - 1 if reliable > 0 else math.inf

    def _error(self, items: Items) -> float:
        """The variance of the errors of a candidate's predicted scores in units of that of the latest candidates'."""
        return self._by_signal({n: float(f.covariance[0, 0]) for n, f in self._forecasts([items]).items()})

    def _by_signal(self, variances: Mapping[str, float]) -> float:
        """Variances in units of the signals, slices of different spread counting alike."""
        scale = self.bounds.scale
        noise = sum(variance / scale[name] ** 2 for name, variance in variances.items())
        signal = sum(self._signals.get(name, 0.0) / scale[name] ** 2 for name in variances)
        if noise <= 0:
            return 0.0
        return noise / signal if signal > 0 else math.inf

    @cached_property
    def _first_part(self) -> float:
        """The part of the items on which candidates that differ as the latest ones do are likely to be told apart; 1
        where nothing is known of them or no rung is large enough."""
        if not self._schedule.ladder or len(self._controls) < _FEWEST or not self._signals:
            return 1.0
        rung = self._schedule.rung(_TRIED)
        variances = {}
        for name, forecaster in self._schedule.forecasters.items():
            at = np.array([item in rung[name] for item in forecaster.item_weights.names])
            known = np.array([control.units[name] for control in self._controls])
            components = forecaster.components(known[1:], known[0], at)
            forecast = forecaster.forecast(np.where(at, known[1:], np.nan), known[0], components)
            variances[name] = float(np.median(np.diag(forecast.covariance)))
        noise = self._by_signal(variances)
        needed = _part(self._schedule.part(rung), NOISE / noise) if noise > 0 else 0.0
        return needed if needed <= self._schedule.part(self._schedule.rung(self._schedule.ladder[-1])) else 1.0

    def _chances(self, entries: Sequence[Entry], rung: ItemNames) -> dict[Entry, Chances]:
        """What the items so far say of each candidate."""
        drawn = self._drawn_keys(entries, rung)
        ranks = np.empty((len(entries), _DRAWS))
        for draw, keys in enumerate(drawn):
            order = sorted(range(len(entries)), key=lambda at: (keys[at], at))
            ranks[order, draw] = np.arange(len(entries))
        return {
            entry: Chances(
                best=sum(r == 0 and keys[at] < self._best for r, keys in zip(ranks[at], drawn, strict=True)) / _DRAWS,
                parent=float((ranks[at] < self._parents).mean()),
                feasible=sum(keys[at][0] == FEASIBLE for keys in drawn) / _DRAWS,
                ranks=ranks[at],
            )
            for at, entry in enumerate(entries)
        }

    def _drawn_keys(self, entries: Sequence[Entry], rung: ItemNames) -> list[list[RankKey]]:
        """[draws][entries], the ranks if the scores were those drawn. Candidates on common items are drawn jointly,
        with the covariance of their differences: a paired test."""
        candidates = [entry.items if entry in self._rivals else entry.scored(rung) for entry in entries]
        scores = {}
        for name, of_control in self._control.scores.items():
            known = [entry.totals[name].value if name in entry.totals else of_control for entry in entries]
            scores[name] = np.tile(known, (_DRAWS, 1))
        for name, forecast in self._forecasts(candidates).items():
            value = np.vectorize(self._schedule.item_weights[name].kind.value, otypes=[float])
            scores[name] = value(forecast.draws(_DRAWS, self._generator))
        return self.bounds.keys(scores)


def _part(part: float, factor: float) -> float:
    """The part of the items at which the variance of a prediction, which is proportional to ``1 / part - 1``, is
    `factor` times what it is now."""
    return 1 / (1 + (1 / part - 1) * max(0.0, factor))


def _bounded(units: Matrix, control: np.ndarray) -> Matrix:
    """Infinite units (an answer of probability 0) as ones far beyond the control's worst."""
    worst = 1e3 * (1.0 + float(np.abs(control).max(initial=0.0)))
    return np.clip(units, -worst, worst)
