"""Candidates scored on as few items as tell them apart; whoever could win is scored on all."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.errors import TrialError
from evomerge.evaluator.executor import AggregateJob, EvalTask
from evomerge.files.objects import FitnessSpec, Saving, SpaceSpec
from evomerge.optimize.ordering import rank_key
from evomerge.study.racing.bounds import ScoreBounds
from evomerge.study.racing.race import Control, Entry, Race
from evomerge.study.racing.rungs import Chosen, Items, ItemSchedule
from evomerge.study.run.evaluation import Evaluation, TrialResult, added
from evomerge.study.run.items import load_items
from evomerge.study.run.trial import Trial
from evomerge.types import SliceScore

if TYPE_CHECKING:
    from evomerge.study.session import Session

_CONTROLS = 32
"""How many of the latest merges that were scored in full a candidate may be predicted from."""

_KEPT = 256
"""Of how many trials the items stay in memory; those of older ones are read again where they are asked for."""


class Racer:
    """The means of saving, for one session of a run whose references are scored."""

    def __init__(self, session: Session, means: Sequence[Saving]) -> None:
        """`means`: at least one, see `applicable`."""
        self._session = session
        self._known: dict[int, Items] = {}
        references = [t for t in session.store.told() if t.kind == "reference" and t.state == "complete"]
        references.sort(key=lambda t: t.label != "base")
        fitness = replace(session.plan.fitness, economy=tuple(means))
        self.course = ItemSchedule(fitness, session.outline, [self._items(t) for t in references])

    def race(self, trials: Sequence[Trial], since: int, places: int) -> dict[int, EvalTask[Trial]]:
        """Score those of `trials` that are running, against each other and the finished ones. Returns, by number, the
        work that stores each. They compete with what there was before trial number `since`.

        A trial that a killed process left in flight goes on with the items that it had been scored on.
        """
        race, entries = self._lined_up(trials, since, places)
        race.run()
        self._forget()
        return {entry.trial.number: self._end(race, entry) for entry in entries if not entry.finished}

    def evaluate_alone(self, trial: Trial) -> EvalTask[Trial]:
        """Score a trial that was started by itself, while others are being scored, and store it."""
        race, [entry] = self._lined_up([trial], trial.number, 1)
        yield from race.score_rest(entry)
        self._forget()
        return (yield from self._end(race, entry))

    def _lined_up(self, trials: Sequence[Trial], since: int, places: int) -> tuple[Race, list[Entry]]:
        before = [t for t in self._session.store.told() if t.number < since]
        entries = [self._entry(t) for t in trials]
        if len(entries) > 1:
            return self._race(before, entries, [], places), entries
        best = self._best_tenth(before)
        return self._race(before, entries, [self._entry(t) for t in best], len(best)), entries

    def _forget(self) -> None:
        for number in sorted(self._known)[:-_KEPT]:
            del self._known[number]

    def _best_tenth(self, before: Sequence[Trial]) -> list[Trial]:
        """Whom a candidate that comes alone competes with."""
        ranked = [t for t in self._session.floors(before).ranked() if t.kind == "search" and t.ranked]
        return ranked[: math.ceil(len(ranked) / 10)]

    def in_full(self, trial: Trial) -> EvalTask[TrialResult]:
        """The scores of a stopped trial on all items, at the cost of those that it was not scored on. TrialError."""
        entry = self._entry(trial)
        for name in entry.items.keys() - self.course.compositions.keys():
            del entry.items[name]  # asked again: of its score only the value was kept
            entry.totals.pop(name, None)
        rest = self.course.rung(1.0)
        yield from self._ask(entry, {n: names.difference(entry.items.get(n, ())) for n, names in rest.items()})
        return (yield from self._measured(entry, {}))

    def _race(self, before: Sequence[Trial], field: list[Entry], known: list[Entry], places: int) -> Race:
        session, leaderboard = self._session, self._session.floors(before)
        best = next(t for t in (*leaderboard.merges(), *leaderboard.ranked()) if t.state == "complete")
        latest = sorted(leaderboard.merges(), key=lambda t: t.number, reverse=True)[:_CONTROLS]
        controls = [Control(self._items(t), t.scores) for t in (best, *latest)]
        margins = {name: best.scores[name] - bound for name, bound in best.bounds.items()}
        confidence = session.plan.fitness.confidence
        prospects = ScoreBounds(leaderboard, self._objective, self.course.compositions, margins, confidence)
        seed = (session.plan.spec.optimizer["seed"], field[0].trial.number)
        rank = rank_key(leaderboard.outcome(best))
        tools = self._ask, session.each
        return Race(self.course, prospects, controls, rank, *tools, field, known, max(1, places), seed)

    # One candidate.

    def _entry(self, trial: Trial) -> Entry:
        """A trial with what is known of it: nothing, if it was just started."""
        known, finished = self._items(trial), trial.state != "running"
        if not finished and trial.digest is None:
            known = {}
        elif not finished and self.course.seen(known) < self.course.total:
            # What was cut short is asked anew from there: the same items at once give the same bits.
            known = self.course.within_rungs(known)
        # Of a slice that is asked as a whole, a trial in flight has no score yet: it is asked again.
        items = {n: dict(known[n]) for n in known if finished or n in self.course.compositions}
        whole = [name for name in trial.scores if name not in self.course.compositions]
        totals = {name: SliceScore(trial.scores[name], trial.stderr.get(name)) for name in whole}
        return Entry(trial, items, totals, trial.digest, dict(trial.seconds), finished)

    def _items(self, trial: Trial) -> Items:
        if trial.number not in self._known:
            self._known[trial.number] = load_items(self._session.folder.items, trial.number, "search")
        return self._known[trial.number]

    def _ask(self, entry: Entry, chosen: Chosen) -> EvalTask[None]:
        """Score a candidate on items that it was not scored on, and keep them. Raises TrialError."""
        session = self._session
        session.observer.trial_started(entry.trial)
        started = time.perf_counter()
        try:
            evaluation = yield from session.part(entry.trial, entry.digest, chosen)
        finally:
            entry.seconds = added(entry.seconds, {"total": time.perf_counter() - started})
        for name, score in evaluation.scores.items():
            entry.items.setdefault(name, {}).update({item.item: item for item in score.items})
            if name not in self.course.compositions:
                entry.totals[name] = score
        entry.digest = evaluation.digest
        entry.seconds = added(entry.seconds, evaluation.seconds)
        if not entry.finished:  # before the items: whose items are there was noted
            session.store.note(entry.trial, entry.digest, entry.seconds)
        session.keep_items(entry.trial, "search", {name: list(items.values()) for name, items in entry.items.items()})
        self._known[entry.trial.number] = entry.items

    # How it ends.

    def _end(self, race: Race, entry: Entry) -> EvalTask[Trial]:
        if entry.failed is not None:
            return self._session.fail(entry.trial, entry.failed, entry.seconds)
        try:
            predicted = {} if entry.ended is None else self._predicted(race, entry)
            measured = yield from self._measured(entry, predicted)
        except TrialError as error:
            return self._session.fail(entry.trial, str(error), entry.seconds)
        stopped = (entry.by, entry.ended) if entry.ended is not None else None
        return self._session.finish(entry.trial, measured, entry.seconds, stopped)

    def _predicted(self, race: Race, entry: Entry) -> dict[str, tuple[float, float]]:
        """Slice -> score and confidence bound, as far as they are known: never above what is possible still."""
        found = {}
        for name, value in race.predicted(entry).items():
            bound = value - race.prospects.margins.get(name, 0.0)
            if name in self.course.compositions:
                highest, highest_bound = race.prospects.ceiling(name, entry.items)
                value, bound = min(value, highest), min(bound, highest_bound)
            found[name] = (self._possible(name, value), bound)
        return found

    def _objective(self, scores: Mapping[str, float]) -> float:
        """The objective of predicted scores."""
        return self._session.objective({name: self._possible(name, value) for name, value in scores.items()})

    def _possible(self, name: str, value: float) -> float:
        """A predicted score as one that the objective can take: the geometric mean has none below 0."""
        geometric = self._session.plan.fitness.objective == "geometric_mean"
        return max(0.0, value) if geometric and self._session.outline.slices[name].sign > 0 else value

    def _measured(self, entry: Entry, predicted: dict[str, tuple[float, float]]) -> EvalTask[TrialResult]:
        """The scores, measured on all items or predicted."""
        session, slices = self._session, self._session.outline.slices
        if predicted:
            scores = {name: SliceScore(predicted[name][0], None) for name in slices if name in predicted}
        else:
            totals = yield AggregateJob({n: entry.items[n] for n in slices if n not in entry.totals})
            scores = {name: entry.totals.get(name) or totals[name] for name in slices}
        measured = session.measured(Evaluation(scores, entry.digest or "", entry.seconds))
        bounds = {name: bound for name, (_, bound) in predicted.items()} if predicted else measured.bounds
        kept = bounds if session.plan.fitness.confidence is not None else {}
        return TrialResult(
            measured.evaluation, measured.objective, kept, self.course.seen(entry.items), self.course.total
        )


def applicable(spec: SpaceSpec, fitness: FitnessSpec) -> tuple[Saving, ...]:
    """Those means of saving of the fitness file that this search can use: without generations, none that compares the
    candidates of one."""
    return tuple(s for s in fitness.economy if s == "early_stop" or not spec.asynchronous)
