"""Pruning: candidates are scored on as few items as tell them apart, and on all where they could win."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from evomerge.errors import TrialError
from evomerge.evaluator.evaluation import Evaluation, add_seconds
from evomerge.evaluator.executor import Executor, run_all
from evomerge.evaluator.jobs import EvalTask
from evomerge.files.objects import FitnessSpec, Pruner, SpaceSpec
from evomerge.optimize.ordering import rank_key
from evomerge.scoring.item_noise import Scored
from evomerge.scoring.slices import SliceInfo
from evomerge.scoring.stats.anchors import Vector
from evomerge.study.racing.bounds import ScoreBounds
from evomerge.study.racing.race import Control, Entry, Race
from evomerge.study.racing.rungs import ItemNames, ItemSchedule
from evomerge.study.run.evaluation import TrialResult
from evomerge.study.run.items import Items
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial
from evomerge.study.trials import Trials
from evomerge.types import ItemScore, SliceScore

_CONTROLS = 32
"""How many of the latest merges that were scored in full a candidate may be predicted from."""

_RECENT = 16
"""How many of the latest candidates show how far apart candidates are."""

_RETRIED = 4
"""One of so many candidates is raced where races prune none."""

_CACHED = 256
"""Trials whose items stay in memory; those of older ones are read again when they are needed."""


class Racer:
    """Scores candidates with pruning, once the references are scored. It returns results; of a trial in flight it keeps
    the items, and notes how far it has come."""

    def __init__(
        self, trials: Trials, leaderboard: Leaderboard, executor: Executor, pruning: Sequence[Pruner], seed: int
    ) -> None:
        """Args:
        trials: of the run.
        leaderboard: of its trials as they ended.
        executor: scores candidates.
        pruning: the means that the search uses, at least one (`applicable`).
        seed: of the optimizer.
        """
        self._trials, self._leaderboard, self._executor, self._seed = trials, leaderboard, executor, seed
        self._items_of: dict[int, Items] = {}
        self._units_of: dict[int, dict[str, Vector]] = {}
        self._results: dict[int, TrialResult] = {}
        references = [t for t in leaderboard.trials if t.kind == "reference" and t.state == "complete"]
        references.sort(key=lambda t: t.label != "base")
        fitness = replace(trials.criteria.fitness, pruning=tuple(pruning))
        self.schedule = ItemSchedule(fitness, trials.criteria.info, [self._items(t) for t in references])

    def race(self, trials: Sequence[Trial], since: int, parents: int) -> None:
        """Scores the running ones of `trials` against each other and the finished ones; `evaluate` gives their results.
        A candidate that comes alone competes with the best tenth of the trials before it.

        A trial that a killed process left in flight goes on with the items that it was scored on. Where races prune
        none, most that come alone are left to `evaluate`.

        Args:
            trials: of one generation.
            since: number of the generation's first trial; they compete with the trials before it.
            parents: how many of the generation make a difference to the optimizer.
        """
        if len(trials) == 1 and self._in_vain(since):
            return
        entries = [self._entry(trial) for trial in trials]
        rivals = [self._entry(trial) for trial in self._best_tenth(since)] if len(entries) == 1 else []
        race = self._race(since, entries, rivals, len(rivals) if len(entries) == 1 else parents)
        race.run()
        self._results = {e.trial.number: self._result(race, e) for e in entries if not e.finished}
        self._forget()

    def evaluate(self, trial: Trial) -> EvalTask[TrialResult]:
        """The result of a trial that raced; else the trial is scored by itself, while others are being scored."""
        if trial.number in self._results:
            return self._results.pop(trial.number)
        entry = self._entry(trial)
        race = self._race(trial.number, [entry], [], 1)
        yield from race.score_rest(entry)
        self._forget()
        return self._result(race, entry)

    def score_in_full(self, trial: Trial) -> EvalTask[TrialResult]:
        """The result of a pruned trial on all items, at the cost of those that it was not scored on. TrialError."""
        self._items_of[trial.number] = self._trials.items(trial)
        entry = self._entry(trial)
        del self._items_of[trial.number]
        for name in entry.items.keys() - self.schedule.item_weights.keys():
            del entry.items[name]  # scored again: only the value of its score was kept
            entry.totals.pop(name, None)
        left = {n: names.difference(entry.items.get(n, ())) for n, names in self.schedule.rung(1.0).items()}
        if any(left.values()):
            yield from self._score(entry, left)
            self._keep(entry)
        return self._measured(entry)

    def _in_vain(self, since: int) -> bool:
        """Whether a race of one candidate is likely to cost a pass more, and to save nothing: none of the latest was
        pruned. Every _RETRIED-th is raced all the same, to see whether that has changed."""
        latest = [t for t in self._leaderboard.latest(_RECENT, since) if t.kind == "search"]
        return len(latest) == _RECENT and not any(t.pruned_by for t in latest) and since % _RETRIED != 0

    def _best_tenth(self, since: int) -> list[Trial]:
        ranked = [t for t in self._leaderboard.in_order(since) if t.kind == "search" and t.ranked]
        return ranked[: math.ceil(len(ranked) / 10)]

    def _signals(self, since: int) -> dict[str, float]:
        """By how much the scores of the latest candidates, predicted ones among them, vary in each slice, as
        `Race` takes it."""
        latest = [t for t in self._leaderboard.latest(_RECENT, since) if t.kind == "search" and t.ranked]
        if len(latest) < _RECENT // 2:
            return {}
        kinds = {name: weights.kind for name, weights in self.schedule.item_weights.items()}
        return {name: float(np.var([kind.mean(t.scores[name]) for t in latest])) for name, kind in kinds.items()}

    def _race(self, since: int, field: list[Entry], rivals: list[Entry], parents: int) -> Race:
        board, criteria = self._leaderboard, self._trials.criteria
        floors = replace(board.floors, aim=board.floors.aim_of(since))
        ahead = (t for order in (board.merges_in_order, board.in_order) for t in order(since))
        best = next(t for t in ahead if t.state == "complete")
        controls = [best, *board.latest_merges(_CONTROLS, since)]
        margins = {name: best.scores[name] - bound for name, bound in best.bounds.items()}
        confidence = criteria.fitness.confidence
        return Race(
            self.schedule,
            ScoreBounds(floors, self._objective, self.schedule.item_weights, margins, confidence, best.errors),
            [Control(self._units(trial), trial.scores) for trial in controls],
            rank_key(board.outcome(best)),
            field,
            rivals,
            self._signals(since),
            parents=max(1, parents),
            seed=(self._seed, field[0].trial.number),
            score=self._score,
            keep=self._keep,
            run_all=partial(run_all, self._executor),
        )

    # One candidate.

    def _entry(self, trial: Trial) -> Entry:
        """The trial with its recorded items: none, if it was just begun."""
        recorded, finished = self._items(trial), trial.state != "running"
        items = recorded
        if not finished and trial.digest is None:
            items = {}
        elif not finished and self.schedule.count(items) < self.schedule.total:
            # A part that was cut short is scored again as a whole: the same items at once give the same bits.
            items = self._last_rung(trial) if recorded else {}
        # Of a slice that is scored as a whole, a trial in flight has no score yet: it is scored again.
        kept = {n: dict(items[n]) for n in items if finished or n in self.schedule.item_weights}
        if kept and kept != recorded:
            # Items that are scored again would else stand beside the recorded ones.
            self._trials.keep_items(trial, "search", {name: scores.values() for name, scores in kept.items()})
        whole = [name for name in trial.scores if name not in self.schedule.item_weights]
        totals = {name: SliceScore(trial.scores[name], trial.stderr.get(name)) for name in whole}
        return Entry(trial, kept, totals, trial.digest, dict(trial.seconds), finished)

    def _items(self, trial: Trial) -> Items:
        """Its items; of a finished one those that it was scored on then, without what a promotion added."""
        if trial.number not in self._items_of:
            enough = None if trial.state == "running" else partial(self._has_items, trial.evaluated)
            self._items_of[trial.number] = self._trials.items(trial, enough)
        return self._items_of[trial.number]

    def _last_rung(self, trial: Trial) -> Items:
        """The recorded items of a trial in flight up to the last rung that it finished."""
        rung: Items = {}

        def note(items: Items) -> bool:
            nonlocal rung
            if self.schedule.is_rung(items):
                rung = {name: dict(scores) for name, scores in items.items()}
            return False

        note(self._trials.items(trial, note))
        return rung

    def _units(self, trial: Trial) -> dict[str, Vector]:
        """The units of a trial that was scored in full."""
        if trial.number not in self._units_of:
            items = self._items(trial)
            self._units_of[trial.number] = {n: w.units(items[n]) for n, w in self.schedule.item_weights.items()}
        return self._units_of[trial.number]

    def _has_items(self, count: int, items: Items) -> bool:
        return bool(items) and self._trials.criteria.info.count(items) >= count

    def _forget(self) -> None:
        for number in sorted(self._items_of)[:-_CACHED]:
            del self._items_of[number]
        for number in sorted(self._units_of)[:-_CACHED]:
            del self._units_of[number]

    def _score(self, entry: Entry, names: ItemNames) -> EvalTask[None]:
        """Scores a candidate on further items. Raises TrialError."""
        trials = self._trials
        trials.observer.trial_started(entry.trial)
        started = time.perf_counter()
        try:
            evaluation = yield from trials.score(entry.trial, "search", names, entry.digest)
        finally:
            entry.seconds = add_seconds(entry.seconds, {"total": time.perf_counter() - started})
        for name, score in evaluation.scores.items():
            entry.items.setdefault(name, {}).update({item.item: item for item in score.items})
            entry.new.setdefault(name, []).extend(score.items)
            if name not in self.schedule.item_weights:
                entry.totals[name] = score
        entry.digest = evaluation.digest
        entry.seconds = add_seconds(entry.seconds, evaluation.seconds)

    def _keep(self, entry: Entry) -> None:
        """Writes down the items that a candidate was scored on since the last time."""
        trials, new = self._trials, entry.new
        if not new or entry.digest is None:
            return
        if not entry.finished:  # before the items: a trial with items was noted
            trials.store.note(entry.trial, entry.digest, entry.seconds)
            self._items_of[entry.trial.number] = entry.items
        if all(len(new.get(name, ())) == len(items) for name, items in entry.items.items()):
            trials.keep_items(entry.trial, "search", new)
        else:
            trials.add_items(entry.trial, new)
        entry.new = {}

    # Its result.

    def _result(self, race: Race, entry: Entry) -> TrialResult:
        if entry.failure is not None:
            return TrialResult.failure(entry.failure, entry.seconds)
        try:
            if entry.pruned is None:
                return self._measured(entry)
            return self._predicted(race, entry)
        except TrialError as error:
            return TrialResult.failure(str(error), entry.seconds)

    def _measured(self, entry: Entry) -> TrialResult:
        """The result of a candidate that was scored on all items."""
        slices = self._trials.criteria.info.slices
        scores = {name: entry.totals.get(name) or _aggregated(info, entry.items[name]) for name, info in slices.items()}
        return self._with_counts(entry, scores)

    def _predicted(self, race: Race, entry: Entry) -> TrialResult:
        """The result of a pruned candidate: scores and confidence bounds as predicted, never above what is still
        possible."""
        scores, bounds = {}, {}
        for name, score in race.predicted(entry, shrunk=True).items():
            bound = score - race.bounds.margins.get(name, 0.0)
            if name in self.schedule.item_weights:
                highest, highest_bound = race.bounds.ceiling(name, entry.items)
                score, bound = min(score, highest), min(bound, highest_bound)
            scores[name], bounds[name] = SliceScore(self._possible(name, score), None), bound
        in_order = {name: scores[name] for name in self._trials.criteria.info.slices if name in scores}
        result = self._with_counts(entry, in_order)
        kept = bounds if self._trials.criteria.fitness.confidence is not None else {}
        errors = self._errors(race, entry, in_order)
        return replace(result, bounds=kept, errors=errors, reason=entry.pruned, pruned_by=entry.pruned_by)

    def _errors(self, race: Race, entry: Entry, scores: Mapping[str, SliceScore]) -> dict[str, float]:
        """`Trial.errors`, by the items that were scored; those of the best where a slice has none."""
        noise = self._trials.item_noise
        errors = noise.errors(Scored(scores, entry.items)) if noise is not None else {}
        return {name: e if entry.items.get(name) else race.bounds.errors.get(name, 0.0) for name, e in errors.items()}

    def _with_counts(self, entry: Entry, scores: Mapping[str, SliceScore]) -> TrialResult:
        evaluation = Evaluation(scores, entry.digest or "", entry.seconds)
        return self._trials.criteria.result(evaluation, self.schedule.count(entry.items), self.schedule.total)

    def _objective(self, scores: Mapping[str, float]) -> float:
        """The objective of predicted scores."""
        possible = {name: self._possible(name, score) for name, score in scores.items()}
        return self._trials.criteria.objective(possible)

    def _possible(self, name: str, score: float) -> float:
        """A predicted score as one that the objective can take: the geometric mean has none below 0."""
        criteria = self._trials.criteria
        geometric = criteria.fitness.objective == "geometric_mean"
        return max(0.0, score) if geometric and criteria.info.slices[name].sign > 0 else score


def _aggregated(info: SliceInfo, items: Mapping[str, ItemScore]) -> SliceScore:
    """A slice's score by all of its items. TrialError where there is none, whatever the reason."""
    assert info.aggregation is not None  # only slices that have one are scored in parts
    try:
        return info.aggregation.score([items[name] for name in info.items])
    except (ArithmeticError, ValueError, TypeError) as error:
        raise TrialError(f"slice {info.name}: {type(error).__name__}: {error}") from error


def applicable(spec: SpaceSpec, fitness: FitnessSpec) -> tuple[Pruner, ...]:
    """The means of pruning in the fitness file that this search can use: without generations, none that compares the
    candidates of one."""
    return tuple(s for s in fitness.pruning if s == "early_stop" or not spec.asynchronous)


_CHEAP = 2e10
"""Operations of a candidate's forward passes, below which pruning costs more time than it saves: a part of a second on
one core, where another merge, another pass with half-empty batches and another file take tens of milliseconds."""


def is_cheap(n_parameters: int, n_read: int | None) -> bool:
    """Whether a candidate takes less time to score than to prune, by counts alone: every machine decides alike, and a
    resumed run as it was launched.

    Args:
        n_parameters: of the model; each token that is read takes two operations a parameter.
        n_read: how many tokens a candidate reads on the search split; None where that is unknown, and counts as many.
    """
    return n_read is not None and 2.0 * n_parameters * n_read < _CHEAP
