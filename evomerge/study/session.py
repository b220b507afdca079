"""A run in progress: proposes nothing itself; starts, evaluates and stores trials, and says where they stand."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from evomerge.errors import InputError, TrialError
from evomerge.evaluator.executor import EvalTask, Executor, ScoreJob, T, drive
from evomerge.optimize.base import Proposal, Reason, Start
from evomerge.optimize.declarations import uses_gradient
from evomerge.optimize.replay import Asked
from evomerge.recipe.mergekit import write_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.registry import OBJECTIVES, load
from evomerge.scoring.gates import judge, lower_bound, scales, settle
from evomerge.study.after.transfer import StartingPoint
from evomerge.study.gradients.trial_gradients import TrialGradients
from evomerge.study.observer import Observer
from evomerge.study.prepare import Plan
from evomerge.study.racing.racer import Racer, applicable
from evomerge.study.run.evaluation import Evaluation, TrialResult, added
from evomerge.study.run.folder import RunFolder, write_atomic
from evomerge.study.run.items import load_items, write_items
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.store import Store, promotion_key
from evomerge.study.run.trial import UNIFORM, Kind, Trial
from evomerge.types import Genome, ItemScore, Outcome, Scores, SplitName

logger = logging.getLogger(__name__)

_TWIN = "same recipe as "
"""How the label of a trial ends that takes over the scores of an earlier one, before whose these are."""


class Session:
    """Wires a plan, a scorer and a store together for the process that holds the run."""

    def __init__(
        self,
        folder: RunFolder,
        store: Store,
        plan: Plan,
        scorer: Executor,
        observer: Observer,
        first: StartingPoint | None = None,
    ) -> None:
        """`first` is the genome of another run that the search begins with."""
        self.first = first
        self.folder, self.store, self.plan, self.scorer, self.observer = folder, store, plan, scorer, observer
        self.outline = scorer.outline
        self._objective = load(OBJECTIVES[plan.fitness.objective])
        self._floors = Leaderboard((), {}, {}, settled=False)
        self._kept: list[int] = []
        self._told = sum(t.kind == "search" and t.state != "running" for t in store.told())
        self._lapped = time.perf_counter()
        self.economy: Racer | None = None
        self.steering: TrialGradients | None = None

    # Works: what is done piece by piece, several at a time where there are several workers.

    def each(self, works: Iterable[EvalTask[T]], at_once: int | None = None) -> Iterator[T]:
        """What works return, in the order in which they end. The next one is only begun when a worker is free."""
        waiting = iter(works)
        return self.drive(lambda: next(waiting, None), at_once)

    def drive(self, start: Callable[[], EvalTask[T] | None], at_once: int | None = None) -> Iterator[T]:
        """The same for works that are not known beforehand (`scorers.drive`)."""
        return drive(self.scorer, start, at_once)

    # References: base, sources and uniform average, scored first; they settle the relative floors.

    def references(self) -> dict[str, Recipe]:
        space = self.plan.space
        parents = {"base": space.models.base, **space.models.sources}
        recipes = {name: space.parent(reference) for name, reference in parents.items()}
        return {**recipes, UNIFORM: space.uniform()}

    def score_references(self) -> None:
        """Score every reference that has no trial yet, and every parent whose trial failed in an earlier session.
        InputError where a parent cannot be scored."""
        for trial in self.each(map(self.evaluate, self._references_to_score())):
            if trial.state == "failed" and trial.is_parent:
                problem = f"{trial.label} could not be scored ({trial.reason})"
                mend = "resume if the cause was outside the run's files, else launch a new run"
                raise InputError(problem, f"{mend}; the log is {self.folder.log}")
        self.settle()

    def _references_to_score(self) -> Iterator[Trial]:
        for label, recipe in self.references().items():
            known = [t for t in self.store.trials() if t.kind == "reference" and t.label == label]
            usable = [t for t in known if t.state != "failed" or not t.is_parent]
            trial = usable[-1] if usable else self.begin("reference", label, {}, recipe)
            if trial.state == "running":
                yield trial

    def settle(self) -> None:
        """Turn the floors into numbers, by the references' scores, and write them down for those who only read."""
        parents = {t.label: t.slice_scores for t in self.store.trials() if t.is_parent and t.state == "complete"}
        gates = settle(self.outline.slices, parents)
        self._floors = Leaderboard((), gates, scales(parents, gates), traded=self.plan.fitness.traded)
        self.store.record("gates", self._floors.to_data())
        self._warn_of_flat_slices()
        self._keep_best(self.leaderboard())
        means = applicable(self.plan.spec, self.plan.fitness)
        self.economy = Racer(self, means) if means else None
        if self.economy is not None:
            alone = "; asynchronous candidates do not race" if self.plan.spec.asynchronous else ""
            self.observer.note(f"items: {self.economy.course}{alone}")
        if uses_gradient(self.plan.spec.optimizer["name"], self.plan.spec.options):
            self.steering = TrialGradients(self)
            self.steering.score_references()

    def _warn_of_flat_slices(self) -> None:
        """A slice on which all references score the same more likely has a mistake in its task than in its models."""
        scores = [t.scores for t in self.store.trials() if t.kind == "reference" and t.scores]
        for name, piece in self.outline.slices.items():
            values = {s[name] for s in scores}
            if len(values) == 1:
                shown = piece.show(values.pop())
                self.observer.warn(f"slice {name}: base, sources and average all score {shown:.4f}; check its task")

    # Trials.

    def begin(self, kind: Kind, label: str, genome: Genome, recipe: Recipe, sloped: bool = False) -> Trial:
        told = self._told if self.plan.spec.asynchronous and kind == "search" else None
        return self.store.start(kind, label, genome, recipe, self.plan.spec.optimizer["seed"], told, sloped)

    def begin_search(self, proposal: Proposal) -> Trial:
        """A new trial of a genome that the optimizer proposed."""
        genome, label = proposal.genome, proposal.label
        recipe = self.plan.space.recipe(genome)
        if self.first is not None and genome == self.first.genome:
            label = label or str(self.first)
        twin = self._twin(recipe.id) if proposal.reason is not Reason.RE_EVALUATION else None
        again = f"{_TWIN}{twin.name}" if twin else ""
        needs_gradient = proposal.needs_gradient
        return self.begin("search", ", ".join(filter(None, (label, again))), genome, recipe, needs_gradient)

    def _twin(self, recipe_id: str) -> Trial | None:
        """The first trial that scored this recipe on all items."""
        return next((t for t in self.store.told() if t.recipe_id == recipe_id and t.state == "complete"), None)

    def _twin_of(self, trial: Trial) -> Trial | None:
        """Whose scores a trial takes over, by its label."""
        twin = self._twin(trial.recipe_id) if _TWIN in trial.label else None
        return twin if twin is not None and trial.label.endswith(f"{_TWIN}{twin.name}") else None

    def _copy(self, trial: Trial, twin: Trial) -> EvalTask[Trial]:
        """Store a trial with the scores of the one whose recipe it has again."""
        items = load_items(self.folder.items, twin.number, "search")
        self.keep_items(trial, "search", {name: list(met.values()) for name, met in items.items()})
        evaluation = Evaluation(twin.slice_scores, twin.digest or "", {})
        assert twin.objective is not None  # it is complete
        measured = TrialResult(evaluation, twin.objective, twin.bounds, twin.evaluated, twin.items)
        yield from ()  # nothing has to be scored
        return self.finish(trial, measured, trial.seconds or {"total": 0.0})

    def in_flight(self) -> list[Trial]:
        """The trials that a killed process left in flight."""
        return [t for t in self._searched() if t.state == "running"]

    def _searched(self) -> list[Trial]:
        return [t for t in self.store.told() if t.kind == "search"]

    def left_behind(self, told: int) -> list[Trial]:
        """The trials that a killed process began after `told` outcomes: in flight, or ended after one in flight."""
        return self._searched()[told:]

    def evaluate_all(self, trials: Sequence[Trial], rivals: int, places: int) -> list[Trial]:
        """Score trials, and store them, on as many items as it takes: see `Racer.race`. The `rivals` before them are
        of the same generation. What was scored before is not scored again, and takes no part in the race; nor does what
        has slopes, as its margins steer the next step, and a prediction can be far off for one slice."""
        trials = [self.steering.find(t) if self.steering and t.lacks_slopes else t for t in trials]
        before = [t for t in self._searched() if t.number < trials[0].number]
        generation = [*before[len(before) - rivals :], *trials]
        twins = {t.number: twin for t in generation if (twin := self._twin_of(t))}
        racing = [t for t in generation if t.number not in twins and not t.sloped]
        raced: dict[int, EvalTask[Trial]] = {}
        if self.economy is not None and any(t.state == "running" for t in racing):
            raced = self.economy.race(racing, generation[0].number, places)

        def work(trial: Trial) -> EvalTask[Trial]:
            if trial.number in twins:
                return self._copy(trial, twins[trial.number])
            return raced[trial.number] if trial.number in raced else self.evaluate(trial)

        # After a race one after the other: whoever is stored is so in the order in which they were asked.
        ended = self.each((work(t) for t in trials if t.state == "running"), at_once=1 if self.economy else None)
        done = {trial.number: trial for trial in ended}
        return [done.get(trial.number, trial) for trial in trials]

    def evaluate_alone(self, trial: Trial) -> EvalTask[Trial]:
        """Score a trial, and store it, while others are being scored."""
        if self.steering is not None and trial.lacks_slopes:
            trial = yield from self.steering.find_alone(trial)
            if trial.state == "failed":
                return trial
        if twin := self._twin_of(trial):
            return (yield from self._copy(trial, twin))
        if self.economy is None or trial.sloped:
            return (yield from self.evaluate(trial))
        return (yield from self.economy.evaluate_alone(trial))

    def evaluate(self, trial: Trial) -> EvalTask[Trial]:
        """Materialize, score and store one trial on all items. A candidate that fails is stored with its reason."""
        self.observer.trial_started(trial)
        started = time.perf_counter()
        try:
            measured = yield from self.measure(trial, "search")
        except (TrialError, InputError) as error:
            # A recipe that does not fit its checkpoints is the candidate's failure, too.
            return self.fail(trial, str(error), added(trial.seconds, {"total": time.perf_counter() - started}))
        spent = {**measured.evaluation.seconds, "total": time.perf_counter() - started}
        return self.finish(trial, measured, added(trial.seconds, spent))

    def fail(self, trial: Trial, reason: str, seconds: Mapping[str, float]) -> Trial:
        """Store a trial as failed."""
        logger.warning("trial %d failed: %s", trial.number, reason)
        spent = self._timed({"total": 0.0, **seconds})
        return self._ended(self.store.fail(trial, reason, spent, self._place(trial)))

    def finish(
        self,
        trial: Trial,
        measured: TrialResult,
        seconds: Mapping[str, float],
        stopped: tuple[str, str] | None = None,
    ) -> Trial:
        """Store a trial with its scores; `stopped` says by what, and why, it was not scored on all items."""
        about = self._timed(seconds), self._constraints(measured), stopped, self._place(trial)
        return self._ended(self.store.complete(trial, measured, *about))

    def _timed(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Where trials are scored side by side, each also gets its part of the time that passes meanwhile."""
        if self.scorer.hands == 1:
            return dict(seconds)
        before, self._lapped = self._lapped, time.perf_counter()
        return {**seconds, "elapsed": self._lapped - before}

    def _place(self, trial: Trial) -> int | None:
        return self._told if trial.told is not None else None

    def _ended(self, done: Trial) -> Trial:
        self._told += done.kind == "search"
        if (
            self.first is not None
            and done.label.startswith(str(self.first))
            and done.digest not in (None, self.first.digest)
        ):
            self.observer.warn(f"{done.name} should have the weights of {self.first}, and has others")
        logger.info("trial %d %s: objective %s, %.2f s", done.number, done.state, done.objective, done.seconds["total"])
        leaderboard = self.leaderboard()
        self._keep_best(leaderboard)
        self.observer.trial_finished(done, leaderboard)
        return done

    def score_in_full(self, trial: Trial) -> None:
        """Give a stopped trial, whose scores are predicted, its scores on all items. It stays as it is where that
        fails."""
        assert self.economy is not None  # no trial is stopped without it
        try:
            [measured] = self.each([self.economy.in_full(trial)])
        except (TrialError, InputError) as error:
            self.observer.warn(f"{trial.name} cannot be scored in full: {error}")
            return
        self.store.record(promotion_key(trial.number), {**measured.to_data(), "objective": measured.objective})
        self._keep_best(self.leaderboard())

    def measure(self, trial: Trial, split: SplitName) -> EvalTask[TrialResult]:
        """Scores of a trial's recipe on a split, its items kept. Raises TrialError."""
        evaluation = yield from self.part(trial, trial.digest, None, split)
        self.keep_items(trial, split, {name: score.items for name, score in evaluation.scores.items()})
        measured = self.measured(evaluation)
        count = sum(len(evaluation.scores[pool[0]].items) for pool in self.outline.pools)
        return replace(measured, evaluated=count, items=count)

    def part(
        self,
        trial: Trial,
        digest: str | None,
        chosen: Mapping[str, frozenset[str]] | None,
        split: SplitName = "search",
    ) -> EvalTask[Evaluation]:
        """Score a trial's recipe on some items; `digest` is what its weights were when it was scored before. Raises
        TrialError; a full disk is not the candidate's fault and ends the run."""
        evaluation: Evaluation = yield ScoreJob(trial.recipe, split, chosen)
        if digest is not None and evaluation.digest != digest:
            raise TrialError(f"its recipe does not rebuild the scored weights ({evaluation.digest[:16]})")
        return evaluation

    def keep_items(self, trial: Trial, split: SplitName, items: Mapping[str, Iterable[ItemScore]]) -> None:
        write_items(self.folder.items, trial.number, split, items)

    def measured(self, evaluation: Evaluation) -> TrialResult:
        """What follows from scores."""
        scores = evaluation.scores
        return TrialResult(evaluation, self.objective({n: s.value for n, s in scores.items()}), self._bounds(scores))

    def objective(self, scores: Mapping[str, float]) -> float:
        """The number that is maximised, of oriented scores."""
        return float(self._objective(scores, self.outline.weights))

    def _bounds(self, scores: Scores) -> dict[str, float]:
        """Lower confidence bounds where the fitness file asks for confidence, else nothing."""
        confidence, slices = self.plan.fitness.confidence, self.outline.slices
        if confidence is None:
            return {}
        return {name: lower_bound(score, slices[name].sign, confidence) for name, score in scores.items()}

    def _constraints(self, measured: TrialResult) -> list[float] | None:
        """How far below each floor, 0 where it is met; None before the floors are settled."""
        if not self._floors.settled:
            return None
        return [v.shortfall for v in judge(measured.gated, self._floors.gates, self._floors.scale)]

    # Where the study stands.

    def leaderboard(self) -> Leaderboard:
        return self.floors(self.store.trials())

    def floors(self, trials: Sequence[Trial]) -> Leaderboard:
        """These trials under the settled floors."""
        return replace(self._floors, trials=trials)

    def outcome(self, trial: Trial) -> Outcome:
        """What the optimizer learns of a trial."""
        outcome = self._floors.outcome(trial)
        return outcome if self.steering is None else self.steering.slopes(trial, outcome)

    def start(self) -> Start:
        """What is known before the search: the genomes of well-known models, and how the references did."""
        told = {t.label: t for t in self.store.told() if t.kind == "reference" and t.state != "running"}
        references = self.plan.space.reference_genomes
        known = [(r.genome, self.outcome(told[label])) for label, r in references.items() if label in told]
        return Start(self.first.genome if self.first else None, references, known)

    def history(self) -> list[Asked]:
        """What the optimizer was asked, and told of it: by its record in an asynchronous search; else each was told
        before the next was asked, up to the first that is still in flight."""
        searched = self._searched()
        if not self.plan.spec.asynchronous:
            ended = takewhile(lambda trial: trial.state != "running", searched)
            return [Asked(t.genome, at, self.outcome(t), at) for at, t in enumerate(ended)]
        return [Asked(t.genome, t.told or 0, None if t.state == "running" else self.outcome(t), t.place)
                for t in searched]  # fmt: skip

    def spent(self) -> tuple[int, float]:
        """Finished trials and the seconds they took, over all sessions of the run."""
        finished = [t for t in self.store.trials() if t.state != "running"]
        return len(finished), sum(t.seconds.get("elapsed", t.seconds.get("total", 0.0)) for t in finished)

    def _keep_best(self, leaderboard: Leaderboard) -> None:
        """Write `best.yaml` when another trial leads, or the front has moved, and once a session, as a crash may have
        kept it from that."""
        best = leaderboard.best()
        if best is None:
            return
        leading = [t.number for t in (best, *leaderboard.front())]
        if leading != self._kept:
            about = "best so far by the search items; the winner takes its place when the search ends"
            self.publish(best, about, leaderboard)
            self._kept = leading

    def publish(self, trial: Trial, about: str, leaderboard: Leaderboard) -> None:
        """Make a trial's recipe the run's `best.yaml`, with the search's front, if there is one, above it."""
        header = f"evomerge run {self.folder.name}, {trial.name}, recipe {trial.recipe_id[:16]}\n{about}"
        points = [leaderboard.told(t) for t in leaderboard.front()]
        if points:
            take = f"`evomerge export {self.folder.handle} --trial N` takes any point"
            how = f"the front by the search items ({take}):"
            header = "\n".join([header, how, *points])
        write_atomic(self.folder.best, write_recipe(trial.recipe, header))
