"""A generation's candidates on a few items, then on more, then on all: each as far as it can still make a difference.

Successive elimination with paired tests on common items (Maron & Moore 1997, "The racing algorithm"; Birattari et
al. 2002, "A racing algorithm for configuring metaheuristics"), for the places that an optimizer learns from. What a
candidate would score in full is predicted from the items that it was seen on (`scoring.stats.forecast`); as many scores
as are likely by that are drawn, and in each draw the candidates are ranked, floors first, as everywhere.

A race is a function of its candidates' item scores: run again over the recorded ones, it decides the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.errors import InputError, TrialError
from evomerge.evaluator.executor import EvalTask
from evomerge.optimize.ordering import RankKey, rank_key
from evomerge.scoring.stats.anchors import Matrix, Vector
from evomerge.scoring.stats.forecast import Forecast
from evomerge.study.racing.bounds import ScoreBounds
from evomerge.study.racing.rungs import Chosen, Items, ItemSchedule
from evomerge.study.run.trial import Trial
from evomerge.types import ItemScore, SliceScore

DOUBT = 0.05
"""A candidate goes on while what would make a difference has at least this probability."""

_DRAWS = 200

_WIDTHS = (1 / 4, 1 / 6)
"""About this share of the field goes on from each rung at most: candidates that differ by less than a few items can
tell are not worth all of them, and near the end of a search most do."""


@dataclass(eq=False)
class Entry:
    """One candidate in a race. `finished`: its trial ended before, it is not asked again. `ended` says why it goes no
    further (None: it may), `by` which means of saving did it."""

    trial: Trial
    items: dict[str, dict[str, ItemScore]] = field(default_factory=dict)
    totals: dict[str, SliceScore] = field(default_factory=dict)
    digest: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    finished: bool = False
    failed: str | None = None
    ended: str | None = None
    by: str = ""

    def met(self, chosen: Chosen) -> Items:
        """Of the items that it met, those in `chosen`: a race that is run again must not know more than it did."""
        return {n: {i: s for i, s in met.items() if i in chosen.get(n, ())} for n, met in self.items.items()}


@dataclass(frozen=True)
class Control:
    """A merge that was scored in full before the race: its items and its scores."""

    items: Items
    scores: Mapping[str, float]


class Race:
    """Scores a field of candidates. Those whose trials ended before take part with the items that they met."""

    def __init__(
        self,
        course: ItemSchedule,
        prospects: ScoreBounds,
        controls: Sequence[Control],
        best: RankKey,
        ask: Callable[[Entry, Chosen], EvalTask[None]],
        each: Callable[[Iterable[EvalTask[None]]], Iterable[None]],
        field: Sequence[Entry],
        known: Sequence[Entry],
        places: int,
        seed: Sequence[int],
    ) -> None:
        """`controls` may stand in for candidates on the items that these did not meet; `best` is where the best so far
        ranks. `ask` scores a candidate on items that it did not meet yet, `each` does so for several, which do not
        depend on each other; `known` compete with the field without running; `places` is how many of them all make a
        difference to the optimizer."""
        self.prospects = prospects
        self._course, self._ask, self._each = course, ask, each
        self._controls, self._control, self._best = controls, controls[0], best
        self._field, self._known, self._places = field, known, places
        self._generator = np.random.default_rng(list(seed))

    def run(self) -> None:
        """Score every candidate until it failed, or `ended` says why it was stopped, or it has met all items."""
        for share, width in zip(self._course.rungs, _WIDTHS, strict=False):
            rung = self._course.rung(share)
            list(self._each(self._score(entry, rung, rung) for entry in self._running()))
            self._choose_control(rung)
            self._eliminate(rung, max(1, round(width * len(self._field))))
        list(self._each(self.score_rest(entry) for entry in self._running()))

    def _choose_control(self, rung: Chosen) -> None:
        """Take the control that answers a rung most as the field does: what differs least from a candidate predicts it
        best, and one from elsewhere would let an optimizer settle on what the rung's items happen to like."""
        running = [entry.met(rung) for entry in self._running()]
        if not running:
            return
        apart = np.zeros(len(self._controls))
        for name, forecaster in self._course.forecasters.items():
            composition = forecaster.composition
            controls = np.array([composition.units(control.items[name]) for control in self._controls])
            field = _bounded(np.array([composition.units(items.get(name, {})) for items in running]), controls[0])
            seen = ~np.isnan(field).any(axis=0)
            squares = ((field[:, None, seen] - controls[None][:, :, seen]) ** 2).mean(axis=(0, 2))
            apart += squares / (squares.mean() or 1.0)
        self._control = self._controls[int(apart.argmin())]

    def _forecasts(self, met: Sequence[Items]) -> dict[str, Forecast]:
        """What each slice's score is predicted to be, of candidates that met these items."""
        found = {}
        for name, forecaster in self._course.forecasters.items():
            composition = self._course.compositions[name]
            units = np.array([composition.units(items.get(name, {})) for items in met])
            control = composition.units(self._control.items[name])
            found[name] = forecaster.forecast(_bounded(units, control), control)
        return found

    def _running(self) -> list[Entry]:
        return [entry for entry in self._field if entry.ended is None and entry.failed is None]

    def _score(self, entry: Entry, chosen: Chosen, known: Chosen) -> EvalTask[None]:
        """Ask what of `chosen` the candidate was not asked yet, then see whether it is beyond hope by what it met of
        `known`."""
        missing = {name: names.difference(entry.items.get(name, ())) for name, names in chosen.items()}
        if any(missing.values()):
            if entry.finished:
                reason = entry.trial.reason or "finished"
                entry.failed, entry.ended = (reason, None) if entry.trial.state == "failed" else (None, reason)
                return
            try:
                yield from self._ask(entry, missing)
            except (TrialError, InputError) as error:
                entry.failed = str(error)
                return
        left = self._course.seen(entry.items) < self._course.total
        if left and "early_stop" in self._course.fitness.economy:
            entry.ended = self.prospects.hopeless(entry.met(known), entry.totals)
            entry.by = "early_stop" if entry.ended else ""

    def score_rest(self, entry: Entry) -> EvalTask[None]:
        """All that is left of the items: by parts, from the slice on which the candidate is nearest to failing."""
        everything = self._course.rung(1.0)
        if "early_stop" not in self._course.fitness.economy:
            yield from self._score(entry, everything, everything)
            return
        size = self._course.fitness.batch_size
        left = {p.slices: p.chunks(frozenset(entry.items.get(p.slices[0], ())), size) for p in self._course.pools}
        while any(left.values()) and entry.ended is None and entry.failed is None:
            slices = min((s for s, chunks in left.items() if chunks), key=lambda s: self._headroom(entry, s))
            yield from self._score(entry, dict.fromkeys(slices, left[slices].pop(0)), everything)

    def _headroom(self, entry: Entry, slices: tuple[str, ...]) -> float:
        """How far above its floor a pool's worst slice is predicted; below everything where nothing is known yet."""
        if not entry.items.get(slices[0]):
            return -np.inf
        verdicts = self.prospects.verdicts(self.predicted(entry))
        return min((v.bound - v.floor if v.floor is not None else np.inf) for v in verdicts if v.slice in slices)

    def predicted(self, entry: Entry) -> dict[str, float]:
        """Every slice's score, as far as the items tell: exact where all were met, the control's where none was."""
        found = {**self._control.scores, **{name: score.value for name, score in entry.totals.items()}}
        for name, forecast in self._forecasts([entry.items]).items():
            found[name] = self._course.compositions[name].mixture.value(float(forecast.mean[0]))
        return found

    def _eliminate(self, rung: Chosen, most: int) -> None:
        """Let those go on that could be the best so far, or of whom it is open whether they get a place; of them the
        `most` promising."""
        # Not by what each has met: one that a killed process left with all items takes the place that it had.
        running = self._running()
        if not running or rung == self._course.rung(1.0):
            return
        able = [entry for entry in (*self._field, *self._known) if entry.failed is None]
        best, placed = self._chances(able, rung)
        chances = dict(zip(able, zip(best, placed, strict=True), strict=True))
        doubtful = [e for e in running if chances[e][0] >= DOUBT or DOUBT <= chances[e][1] <= 1 - DOUBT]
        doubtful.sort(key=lambda entry: chances[entry], reverse=True)
        for entry in running:
            if entry not in doubtful:
                entry.by = "racing"
                entry.ended = f"{'' if chances[entry][1] > 0.5 else 'not '}among the best {self._places}"
            elif entry not in doubtful[:most]:
                entry.by, entry.ended = "racing", "others were more promising"

    def _chances(self, entries: Sequence[Entry], rung: Chosen) -> tuple[Vector, Vector]:
        """[entries], the probabilities of being better than the best so far, and of getting a place."""
        best, placed = np.zeros(len(entries)), np.zeros(len(entries))
        for keys in self._drawn_keys(entries, rung):
            order = sorted(range(len(entries)), key=lambda at: (keys[at], at))
            placed[order[: self._places]] += 1 / _DRAWS
            best += np.array([key < self._best for key in keys]) / _DRAWS
        return best, placed

    def _drawn_keys(self, entries: Sequence[Entry], rung: Chosen) -> list[list[RankKey]]:
        """[draws][entries], where each would rank if its scores were those drawn."""
        met = [entry.items if entry in self._known else entry.met(rung) for entry in entries]
        drawn = {name: forecast.draws(_DRAWS, self._generator) for name, forecast in self._forecasts(met).items()}
        return [[self._key(entry, drawn, draw, at) for at, entry in enumerate(entries)] for draw in range(_DRAWS)]

    def _key(self, entry: Entry, drawn: Mapping[str, Matrix], draw: int, at: int) -> RankKey:
        values = {**self._control.scores, **{name: score.value for name, score in entry.totals.items()}}
        for name, means in drawn.items():
            values[name] = self._course.compositions[name].mixture.value(float(means[draw, at]))
        return rank_key(self.prospects.outcome(values))


def _bounded(units: Matrix, control: np.ndarray) -> Matrix:
    """Infinite units (an answer of probability 0) as ones far beyond the control's worst."""
    worst = 1e3 * (1.0 + float(np.abs(control).max(initial=0.0)))
    return np.clip(units, -worst, worst)
