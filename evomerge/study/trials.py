"""The trials of a run in progress: they are begun, scored and ended here, and nowhere else."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from evomerge.errors import InputError, TrialError
from evomerge.evaluator.evaluation import Evaluation, add_seconds
from evomerge.evaluator.jobs import EvalTask, ScoreJob
from evomerge.recipe.mergekit import write_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.safety.durable import write_whole
from evomerge.safety.read import read_text
from evomerge.scoring.item_noise import ItemNoise, Scored
from evomerge.study.observer import Observer
from evomerge.study.run.copies import ItemsCopy
from evomerge.study.run.evaluation import Criteria, TrialResult
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.items import Items, append_items, load_items, write_items
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.numbers import constraints, of_search, unknown
from evomerge.study.run.store import Store
from evomerge.study.run.trial import Kind, Trial
from evomerge.types import Genome, ItemScore, SplitName

logger = logging.getLogger(__name__)

AIM = 1.0
"""How many standard errors above each floor a search aims: what the holdout items may say less of a candidate."""


class Trials:
    """Begins, scores and ends the trials of a run, for the process that holds it.

    Attributes:
        leaderboard: all trials, the latest scores of each.
        as_ended: the same trials as they ended in the search, which is what its optimizer was told.
        searched: the searched trials in the order asked, those in flight included.
        n_told: how many searched trials have ended.
        item_noise: of the margins above the floors; None until the references are scored.
        n_items: on how many items of the search split the ended trials, references included, were scored.
        items_copy: of the items' files, somewhere else; None where there is none.
    """

    def __init__(
        self,
        folder: RunFolder,
        store: Store,
        criteria: Criteria,
        observer: Observer,
        *,
        seed: int,
        asynchronous: bool,
        num_workers: int,
    ) -> None:
        """Args:
        folder, store: of the run; the recorded trials are taken in.
        criteria: objective and bounds.
        observer: is told of trials that start and end.
        seed: of the optimizer, for the record.
        asynchronous: whether trials record what the optimizer had been told.
        num_workers: how many trials are scored side by side.
        """
        self.folder, self.store, self.criteria, self.observer = folder, store, criteria, observer
        self.leaderboard, self.as_ended = Leaderboard(Floors.unsettled()), Leaderboard(Floors.unsettled())
        self._seed, self._asynchronous, self._num_workers = seed, asynchronous, num_workers
        slices = criteria.info.slices
        self._signs, self._unknown = {name: info.sign for name, info in slices.items()}, unknown(slices)
        self.item_noise: ItemNoise | None = None
        self.items_copy: ItemsCopy | None = None
        self.searched: list[Trial] = []
        self._places: dict[int, int] = {}  # number -> place in `searched`
        self.n_told = 0
        self._n_finished, self._seconds, self.n_items = 0, 0.0, 0
        self._scored_recipes: dict[str, int] = {}
        self._published: list[int] = []
        self._lap = time.perf_counter()
        for trial in store.as_ended():
            self._check(trial)
            self._take_in(trial)

    def _check(self, trial: Trial) -> None:
        """InputError where a recorded trial cannot be one of this search."""
        fault = "" if trial.seed == self._seed else f"its seed is {trial.seed}, that of the search {self._seed}"
        for scored in {id(t): t for t in (trial, self.store.promoted(trial)) if t.ranked}.values():
            slices = self.criteria.info.slices.keys()
            if not (scored.scores.keys() == slices or (scored.state == "pruned" and scored.scores.keys() <= slices)):
                fault = f"it has scores of {', '.join(scored.scores)}"
            elif not self._is_objective(scored):
                fault = "its objective is not that of its scores"
        if fault:
            raise InputError(f"{trial.name} of the run {self.folder.name!r} is damaged: {fault}", "restore a copy")

    def _take_in(self, trial: Trial) -> None:
        """Notes a trial that was begun or ended."""
        self.leaderboard.put(self.store.promoted(trial))
        self.as_ended.put(trial)
        if trial.is_proposed:
            place = self._places.setdefault(trial.number, len(self.searched))
            self.searched[place : place + 1] = [trial]
        if trial.state == "running":
            return
        self.n_told += trial.is_proposed
        self._n_finished += 1
        self.n_items += trial.items_scored
        self._seconds += trial.seconds.get("elapsed", trial.seconds.get("total", 0.0))
        if trial.state == "complete":
            first = self._scored_recipes.get(trial.recipe_id, trial.number)
            self._scored_recipes[trial.recipe_id] = min(first, trial.number)

    def _is_objective(self, trial: Trial) -> bool:
        try:
            return math.isclose(
                trial.objective or 0.0, self.criteria.objective(trial.scores), rel_tol=1e-9, abs_tol=1e-12
            )
        except TrialError:
            return False

    def settle(self, floors: Floors) -> None:
        """Ranks all trials under the floors that the references have settled."""
        self.leaderboard.settle(floors)
        self.as_ended.settle(floors)
        for trial in self.store.unclosed:
            self.store.close(trial, constraints(floors.verdicts(trial)), of_search(trial, self._signs, floors))

    def aim(self, aim: float, raised: int | None = None) -> None:
        """What the optimizer is told aims `aim` standard errors above the floors, from trial `raised` on twice that."""
        self.as_ended.settle(replace(self.leaderboard.floors, aim=aim, raised=raised))

    # Begin and end.

    def begin(
        self,
        kind: Kind,
        label: str,
        genome: Genome,
        recipe: Recipe,
        *,
        needs_gradient: bool = False,
        duplicate_of: int | None = None,
        generation: int | None = None,
        polished: int | None = None,
    ) -> Trial:
        """Writes a new trial down."""
        proposed = kind == "search" and polished is None
        n_told = self.n_told if self._asynchronous and proposed else None
        trial = self.store.start(
            kind,
            label,
            genome,
            recipe,
            self._seed,
            n_told=n_told,
            needs_gradient=needs_gradient,
            duplicate_of=duplicate_of,
            generation=generation,
            polished=polished,
            numbers=self._unknown,
        )
        self._take_in(trial)
        return trial

    def end(self, trial: Trial, result: TrialResult) -> Trial:
        """Writes down how a trial ended."""
        if result.failed:
            logger.warning("trial %d failed: %s", trial.number, result.reason)
        order = self.n_told if trial.n_told is not None else None
        result = self._with_errors(self._with_elapsed(result))
        floors = self.leaderboard.floors
        scored = _scored(trial, result)
        done = self.store.end(
            trial,
            result,
            constraints(floors.verdicts(scored)),
            order,
            of_search(scored, self._signs, floors),
            floors.settled,
        )
        self._take_in(done)
        logger.info("trial %d %s: objective %s, %.2f s", done.number, done.state, done.objective, done.seconds["total"])
        self.keep_best()
        self.observer.trial_finished(done, self.leaderboard)
        return done

    def promote(self, trial: Trial, result: TrialResult) -> None:
        """Gives a pruned trial, whose scores are predicted, its scores on all items."""
        self.leaderboard.put(self.store.promote(trial, result))
        self.keep_best()

    def in_flight(self) -> list[Trial]:
        """The searched trials that have not ended."""
        return [trial for trial in self.searched if trial.state == "running"]

    def before(self, trial: Trial, count: int) -> list[Trial]:
        """The `count` searched trials that were asked last before this one."""
        place = self._places[trial.number]
        return self.searched[max(0, place - count) : place]

    def spent(self) -> tuple[int, float]:
        """Finished trials and the seconds that they took, over all sessions of the run."""
        return self._n_finished, self._seconds

    def _with_elapsed(self, result: TrialResult) -> TrialResult:
        """Where trials are scored side by side, each also gets its part of the time that passes meanwhile."""
        if self._num_workers == 1:
            return result
        before, self._lap = self._lap, time.perf_counter()
        return replace(result, seconds={**result.seconds, "elapsed": self._lap - before})

    def _with_errors(self, result: TrialResult) -> TrialResult:
        if self.item_noise is None or result.failed or result.errors:
            return result
        items = {name: {item.item: item for item in score.items} for name, score in result.scores.items()}
        return replace(result, errors=self.item_noise.errors(Scored(result.scores, items)))

    # Duplicates.

    def original(self, recipe: Recipe) -> Trial | None:
        """The first trial that scored this recipe on all items."""
        number = self._scored_recipes.get(recipe.id)
        return None if number is None else self.store.trial(number)

    def copy(self, trial: Trial) -> EvalTask[TrialResult]:
        """The result of a duplicate: the scores and items of its original."""
        assert trial.duplicate_of is not None
        original = self.store.trial(trial.duplicate_of)
        items = self.items(original)
        self.keep_items(trial, "search", {name: scores.values() for name, scores in items.items()})
        yield from ()  # nothing has to be scored
        return TrialResult(
            seconds=trial.seconds or {"total": 0.0},
            scores=original.slice_scores,
            digest=original.digest or "",
            objective=original.objective,
            bounds=original.bounds,
            evaluated=original.evaluated,
            items=original.items,
            errors=original.errors,
        )

    # Scores.

    def evaluate(self, trial: Trial) -> EvalTask[TrialResult]:
        """Scores a trial on all items of the search split. The failure of a candidate is a result."""
        self.observer.trial_started(trial)
        started = time.perf_counter()
        try:
            result = yield from self.measure(trial, "search")
        except (TrialError, InputError) as error:
            # A recipe that does not fit its checkpoints is the candidate's failure, too.
            spent = {"total": time.perf_counter() - started}
            return TrialResult.failure(str(error), add_seconds(trial.seconds, spent))
        spent = {**result.seconds, "total": time.perf_counter() - started}
        return replace(result, seconds=add_seconds(trial.seconds, spent))

    def measure(self, trial: Trial, split: SplitName) -> EvalTask[TrialResult]:
        """Scores a trial's recipe on all items of a split, and keeps them. Raises TrialError."""
        evaluation = yield from self.score(trial, split, digest=trial.digest)
        self.keep_items(trial, split, {name: score.items for name, score in evaluation.scores.items()})
        count = self.criteria.info.count({name: score.items for name, score in evaluation.scores.items()})
        return self.criteria.result(evaluation, count, count)

    def score(
        self,
        trial: Trial,
        split: SplitName,
        items: Mapping[str, frozenset[str]] | None = None,
        digest: str | None = None,
    ) -> EvalTask[Evaluation]:
        """Scores a trial's recipe.

        Args:
            trial: with the recipe.
            split: whose items are scored.
            items: slice -> names of the items to score; None: all.
            digest: of the recipe's weights when it was scored before.

        Raises:
            TrialError: it cannot be scored, or is not what it was when it was scored before. A full disk is not the
                candidate's fault and ends the run.
        """
        evaluation: Evaluation = yield ScoreJob(trial.recipe, split, items)
        if digest is not None and evaluation.digest != digest:
            raise TrialError(f"its recipe does not rebuild the scored weights ({evaluation.digest[:16]})")
        return evaluation

    def items(self, trial: Trial, enough: Callable[[Items], bool] | None = None) -> Items:
        """A trial's items of the search split (`load_items`)."""
        return load_items(self.folder.items, trial.number, "search", enough=enough)

    def scored(self, trial: Trial) -> Scored:
        """A trial's scores with its items of the search split; of a pruned one those that it was pruned by, without
        what a promotion added."""
        known = self.criteria.info.count
        pruned = trial.state == "pruned"
        enough = (lambda items: bool(items) and known(items) >= trial.evaluated) if pruned else None
        return Scored(trial.slice_scores, self.items(trial, enough))

    def keep_items(self, trial: Trial, split: SplitName, items: Mapping[str, Iterable[ItemScore]]) -> None:
        write_items(self.folder.items, trial.number, split, items)
        if self.items_copy is not None:
            self.items_copy.changed(trial.number, split)

    def add_items(self, trial: Trial, items: Mapping[str, Iterable[ItemScore]]) -> None:
        """Keeps further items of the search split."""
        append_items(self.folder.items, trial.number, "search", items)
        if self.items_copy is not None:
            self.items_copy.changed(trial.number, "search")

    # best.yaml

    def keep_best(self) -> None:
        """Writes `best.yaml` when another trial leads, or the front has moved, and once a session, as a crash may have
        kept it from that."""
        best, front = self.leaderboard.best(), self.leaderboard.front()
        leading = [trial.number for trial in (best, *front) if trial is not None]
        if best is not None and leading != self._published:
            self.publish(best, "best so far by the search items; the winner takes its place when the search ends")
            self._published = leading

    def publish(self, trial: Trial, reason: str) -> None:
        """Writes a trial's recipe to the run's `best.yaml`, with the search's front, if there is one, above it."""
        header = f"evomerge run {self.folder.name}, {trial.name}, recipe {trial.recipe_id[:16]}\n{reason}"
        points = [self.leaderboard.floors.describe(point) for point in self.leaderboard.front()]
        if points:
            take = f"`evomerge export {self.folder.handle} --trial N` takes any point"
            header = "\n".join([header, f"the front by the search items ({take}):", *points])
        text = write_recipe(trial.recipe, header)
        if not self._stands(text):
            write_whole(self.folder.best, text)

    def _stands(self, text: str) -> bool:
        try:
            return read_text(self.folder.best) == text
        except InputError:
            return False


def _scored(trial: Trial, result: TrialResult) -> Trial:
    """The trial with the scores of a result, before that is stored."""
    scores = {name: score.value for name, score in result.scores.items()}
    return replace(trial, scores=scores, bounds=result.bounds)
