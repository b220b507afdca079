"""A run in progress: proposes nothing itself; starts, evaluates and stores trials, and says where they stand."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.errors import InputError, TrialError
from evomerge.optimize.base import Start
from evomerge.recipe.mergekit import write_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.registry import OBJECTIVES, load
from evomerge.scoring.gates import judge, lower_bound, scales, settle
from evomerge.study.economy import Economy
from evomerge.study.folder import RunFolder, is_disk_full, write_atomic
from evomerge.study.items import write_items
from evomerge.study.measured import Evaluation, Measured
from evomerge.study.observer import Observer
from evomerge.study.prepare import Plan
from evomerge.study.standing import Standing
from evomerge.study.store import Store, promotion_key
from evomerge.study.trial import UNIFORM, Kind, Trial
from evomerge.types import Genome, ItemScore, Outcome, Scores, SplitName

if TYPE_CHECKING:
    from evomerge.study.bench import Workbench

logger = logging.getLogger(__name__)


class Session:
    """Wires a plan, a workbench and a store together for the process that holds the run."""

    def __init__(self, folder: RunFolder, store: Store, plan: Plan, bench: Workbench, observer: Observer) -> None:
        self.folder, self.store, self.plan, self.bench, self.observer = folder, store, plan, bench, observer
        self._objective = load(OBJECTIVES[plan.fitness.objective])
        self._floors = Standing((), {}, {}, settled=False)
        self._kept: list[int] = []
        self.economy: Economy | None = None

    # References: base, sources and uniform average, scored first; they settle the relative floors.

    def references(self) -> dict[str, Recipe]:
        space = self.plan.space
        parents = {"base": space.models.base, **space.models.sources}
        recipes = {name: space.parent(reference) for name, reference in parents.items()}
        return {**recipes, UNIFORM: space.uniform()}

    def score_references(self) -> None:
        """Score every reference that has no trial yet, and every parent whose trial failed in an earlier session.
        InputError where a parent cannot be scored."""
        for label, recipe in self.references().items():
            known = [t for t in self.store.trials() if t.kind == "reference" and t.label == label]
            usable = [t for t in known if t.state != "failed" or not t.is_parent]
            trial = usable[-1] if usable else self.begin("reference", label, {}, recipe)
            if trial.state == "running":
                trial = self.evaluate(trial)
            if trial.state == "failed" and trial.is_parent:
                problem = f"{label} could not be scored ({trial.reason})"
                mend = "resume if the cause was outside the run's files, else launch a new run"
                raise InputError(problem, f"{mend}; the log is {self.folder.log}")
        self.settle()

    def settle(self) -> None:
        """Turn the floors into numbers, by the references' scores, and write them down for those who only read."""
        parents = {t.label: t.slice_scores for t in self.store.trials() if t.is_parent and t.state == "complete"}
        gates = settle(self.bench.suite.slices, parents)
        self._floors = Standing((), gates, scales(parents, gates), traded=self.plan.fitness.traded)
        self.store.record("gates", self._floors.to_data())
        self._warn_of_flat_slices()
        self._keep_best(self.standing())
        self.economy = Economy(self) if self.plan.fitness.economy else None
        if self.economy is not None:
            self.observer.note(f"items: {self.economy.course}")

    def _warn_of_flat_slices(self) -> None:
        """A slice on which all references score the same more likely has a mistake in its task than in its models."""
        scores = [t.scores for t in self.store.trials() if t.kind == "reference" and t.scores]
        for name, piece in self.bench.suite.slices.items():
            values = {s[name] for s in scores}
            if len(values) == 1:
                shown = piece.show(values.pop())
                self.observer.warn(f"slice {name}: base, sources and average all score {shown:.4f}; check its task")

    # Trials.

    def begin(self, kind: Kind, label: str, genome: Genome, recipe: Recipe) -> Trial:
        return self.store.start(kind, label, genome, recipe, self.plan.spec.optimizer["seed"])

    def next_trials(self, genomes: Sequence[Genome]) -> list[Trial]:
        """The trials of proposed genomes: those that a killed process left in flight, or new ones."""
        pending = [t for t in self.store.told() if t.state == "running" and t.kind == "search"]
        for trial, genome in zip(pending, genomes, strict=False):
            if trial.genome != genome:
                problem = f"trial {trial.number} was in flight with another genome than is proposed now"
                raise InputError(problem, "resume with the package versions of environment.json, or launch a new run")
        new = genomes[len(pending) :]
        return [*pending[: len(genomes)], *(self.begin("search", "", g, self.plan.space.recipe(g)) for g in new)]

    def evaluate_all(self, trials: Sequence[Trial], rivals: int, places: int) -> list[Trial]:
        """Score trials, and store them, on as many items as it takes: see `Economy.evaluate`. `rivals` of those that
        ended last are of the same generation."""
        if self.economy is None:
            return [self.evaluate(trial) for trial in trials]
        earlier = [t for t in self.store.told() if t.kind == "search" and t.state != "running"]
        return self.economy.evaluate(trials, earlier[len(earlier) - rivals :], places)

    def evaluate(self, trial: Trial) -> Trial:
        """Materialize, score and store one trial on all items. A candidate that fails is stored with its reason."""
        self.observer.trial_started(trial)
        started = time.perf_counter()
        try:
            measured = self.measure(trial, "search")
        except (TrialError, InputError) as error:
            # A recipe that does not fit its checkpoints is the candidate's failure, too.
            return self.fail(trial, str(error), {"total": time.perf_counter() - started})
        return self.finish(trial, measured, {**measured.evaluation.seconds, "total": time.perf_counter() - started})

    def fail(self, trial: Trial, reason: str, seconds: Mapping[str, float]) -> Trial:
        """Store a trial as failed."""
        logger.warning("trial %d failed: %s", trial.number, reason)
        return self._ended(self.store.fail(trial, reason, {"total": 0.0, **seconds}))

    def finish(
        self,
        trial: Trial,
        measured: Measured,
        seconds: Mapping[str, float],
        stopped: tuple[str, str] | None = None,
    ) -> Trial:
        """Store a trial with its scores; `stopped` says by what, and why, it was not scored on all items."""
        return self._ended(self.store.complete(trial, measured, seconds, self._constraints(measured), stopped))

    def _ended(self, done: Trial) -> Trial:
        logger.info("trial %d %s: objective %s, %.2f s", done.number, done.state, done.objective, done.seconds["total"])
        standing = self.standing()
        self._keep_best(standing)
        self.observer.trial_finished(done, standing)
        return done

    def score_in_full(self, trial: Trial) -> None:
        """Give a stopped trial, whose scores are predicted, its scores on all items. It stays as it is where that
        fails."""
        assert self.economy is not None  # no trial is stopped without it
        try:
            measured = self.economy.in_full(trial)
        except (TrialError, InputError) as error:
            self.observer.warn(f"{trial.name} cannot be scored in full: {error}")
            return
        self.store.record(promotion_key(trial.number), {**measured.to_data(), "objective": measured.objective})
        self._keep_best(self.standing())

    def measure(self, trial: Trial, split: SplitName) -> Measured:
        """Scores of a trial's recipe on a split, its items kept. Raises TrialError."""
        evaluation = self.part(trial, trial.digest, None, split)
        self.keep_items(trial, split, {name: score.items for name, score in evaluation.scores.items()})
        measured = self.measured(evaluation)
        count = sum(len(evaluation.scores[pool[0]].items) for pool in self.bench.suite.pools)
        return replace(measured, evaluated=count, items=count)

    def part(
        self,
        trial: Trial,
        digest: str | None,
        chosen: Mapping[str, frozenset[str]] | None,
        split: SplitName = "search",
    ) -> Evaluation:
        """Score a trial's recipe on some items; `digest` is what its weights were when it was scored before. Raises
        TrialError; a full disk is not the candidate's fault and ends the run."""
        try:
            evaluation = self.bench.evaluate(trial.recipe, split, self.observer.slice_started, chosen)
        except (TrialError, InputError):
            raise
        except Exception as error:
            if is_disk_full(error):
                raise
            logger.exception("trial %d", trial.number)
            raise TrialError(f"{type(error).__name__}: {error}") from error
        if digest is not None and evaluation.digest != digest:
            raise TrialError(f"its recipe does not rebuild the scored weights ({evaluation.digest[:16]})")
        return evaluation

    def keep_items(self, trial: Trial, split: SplitName, items: Mapping[str, Iterable[ItemScore]]) -> None:
        write_items(self.folder.items, trial.number, split, items)

    def measured(self, evaluation: Evaluation) -> Measured:
        """What follows from scores."""
        scores = evaluation.scores
        return Measured(evaluation, self.objective({n: s.value for n, s in scores.items()}), self._bounds(scores))

    def objective(self, scores: Mapping[str, float]) -> float:
        """The number that is maximised, of oriented scores."""
        return float(self._objective(scores, self.bench.suite.weights))

    def _bounds(self, scores: Scores) -> dict[str, float]:
        """Lower confidence bounds where the fitness file asks for confidence, else nothing."""
        confidence, slices = self.plan.fitness.confidence, self.bench.suite.slices
        if confidence is None:
            return {}
        return {name: lower_bound(score, slices[name].sign, confidence) for name, score in scores.items()}

    def _constraints(self, measured: Measured) -> list[float] | None:
        """How far below each floor, 0 where it is met; None before the floors are settled."""
        if not self._floors.settled:
            return None
        return [v.shortfall for v in judge(measured.gated, self._floors.gates, self._floors.scale)]

    # Where the study stands.

    def standing(self) -> Standing:
        return self.floors(self.store.trials())

    def floors(self, trials: Sequence[Trial]) -> Standing:
        """These trials under the settled floors."""
        return replace(self._floors, trials=trials)

    def outcome(self, trial: Trial) -> Outcome:
        """What the optimizer learns of a trial."""
        return self._floors.outcome(trial)

    def start(self) -> Start:
        """What is known before the search: the genomes of well-known models, and how the references did."""
        told = {t.label: t for t in self.store.told() if t.kind == "reference" and t.state != "running"}
        landmarks = self.plan.space.landmarks
        known = [(genome, self.outcome(told[label])) for label, genome in landmarks.items() if label in told]
        return Start(landmarks=landmarks, known=known)

    def history(self) -> list[tuple[Genome, Outcome]]:
        """The optimizer's own finished trials, in the order asked."""
        finished = [t for t in self.store.told() if t.kind == "search" and t.state != "running"]
        return [(t.genome, self.outcome(t)) for t in finished]

    def spent(self) -> tuple[int, float]:
        """Finished trials and the seconds they took, over all sessions of the run."""
        finished = [t for t in self.store.trials() if t.state != "running"]
        return len(finished), sum(t.seconds.get("total", 0.0) for t in finished)

    def _keep_best(self, standing: Standing) -> None:
        """Write `best.yaml` when another trial leads, or the front has moved, and once a session, as a crash may have
        kept it from that."""
        best = standing.best()
        if best is None:
            return
        leading = [t.number for t in (best, *standing.front())]
        if leading != self._kept:
            about = "best so far by the search items; the winner takes its place when the search ends"
            self.publish(best, about, standing)
            self._kept = leading

    def publish(self, trial: Trial, about: str, standing: Standing) -> None:
        """Make a trial's recipe the run's `best.yaml`, with the search's front, if there is one, above it."""
        header = f"evomerge run {self.folder.name}, {trial.name}, recipe {trial.recipe_id[:16]}\n{about}"
        points = [standing.told(t) for t in standing.front()]
        if points:
            take = f"`evomerge export {self.folder.handle} --trial N` takes any point"
            how = f"the front by the search items ({take}):"
            header = "\n".join([header, how, *points])
        write_atomic(self.folder.best, write_recipe(trial.recipe, header))
