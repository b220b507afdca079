"""Gradients of trials: the items that they are taken on, how they are computed, and what they tell an optimizer.

A metric has no slope, but a slice's proxy loss has (`scoring.tasks.proxy_loss`): how unlikely the right answers are,
and where answers are written, those of the source that scores best on the slice. A
quarter of each slice's search items is kept for checking, so that an optimizer can stop before it only learns the other
items by heart. One unit of a proxy loss counts as so much of the metric as both differ between base and sources.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evomerge.errors import EvomergeError, InputError, TrialError
from evomerge.evaluator.executor import Executor, run_all
from evomerge.evaluator.jobs import EvalTask, GradientJob
from evomerge.optimize.declarations import UNWEIGHTED
from evomerge.recipe.recipe import Recipe
from evomerge.registry import CHOICES
from evomerge.scoring.slices import SliceInfo
from evomerge.space.space import Space
from evomerge.study.run.evaluation import TrialResult
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial
from evomerge.study.trials import Trials
from evomerge.types import Outcome, Slopes

if TYPE_CHECKING:
    from evomerge.merging.resident.slopes import ParameterSlopes

_CHECKED = 4
"""One of so many items is for checking."""

_DIGITS = 7
_STEP = 1e-4  # of a slice's scale: for the slopes of the objective by scores

_REFERENCES = "surrogates"
"""The fact that holds the proxy losses of base and sources: label -> slice -> [loss, checked]."""


class TrialGradients:
    """Computes the gradients of a session's trials, once the references are scored."""

    def __init__(self, trials: Trials, leaderboard: Leaderboard, executor: Executor, space: Space) -> None:
        """InputError where no slice has a proxy loss, or `gradient` would have to follow one that has none."""
        self._trials, self._leaderboard, self._executor, self._space = trials, leaderboard, executor, space
        fitness = trials.criteria.fitness
        slices = trials.criteria.info.slices
        self._check_slices(slices)
        differentiable = {name: info for name, info in slices.items() if not info.no_proxy_loss}
        self._items = {name: _split(info, fitness.split_seed) for name, info in differentiable.items()}
        self._teachers: dict[str, Recipe] = {}
        self._genes = [dimension.key for dimension in space.dimensions]
        declared = [p for method in space.spec.methods for p in CHOICES[method].parameters]
        self._of_sources = {p.name for p in declared if p.scope == "source"}
        self._tensors = tuple(tensor for tensor in space.models.tensors if self._is_searched(tensor))

    def _check_slices(self, slices: Mapping[str, SliceInfo]) -> None:
        """Checks what is only known once the tasks are built."""
        spec, specs = self._space.spec, self._trials.criteria.fitness.slices
        for name, info in slices.items():
            if info.no_proxy_loss and info.weight > 0 and spec.optimizer["name"] == "gradient":
                problem = f"gradient cannot follow slice {name}: {info.no_proxy_loss}"
                raise InputError(problem, UNWEIGHTED, specs[name].where)
        if all(info.no_proxy_loss for info in slices.values()):
            name, info = next(iter(slices.items()))
            problem = f"no slice has slopes to follow; {name}: {info.no_proxy_loss}"
            mend = "add one of texts or choices, or search without gradients"
            raise InputError(problem, mend, specs[name].where)

    def _is_searched(self, tensor: str) -> bool:
        """Whether a gene has a part in the tensor's merge."""
        sources = ["", *self._space.models.sources]
        return any(self._space.shares(g.name, s, tensor) for g in self._space.spec.genes for s in sources)

    # Computing gradients.

    def score_references(self) -> None:
        """Computes the proxy losses of base and sources, with which those of trials are compared."""
        store = self._trials.store
        known = dict(store.facts.get(_REFERENCES, {}))
        parents = [trial for trial in store.trials() if trial.is_parent and trial.state == "complete"]
        self._teachers = self._chosen_teachers(parents)
        for trial in parents:
            if trial.label not in known:
                self._trials.observer.phase(f"proxy losses of {trial.label}")
                [results] = run_all(self._executor, [self._slices(trial, ())])
                failed = _first_error(results)
                if failed is not None:
                    mend = "use another optimizer, or a smaller batch_size where memory ran out"
                    raise InputError(f"{trial.label} has no proxy losses ({failed})", mend)
                known[trial.label] = {name: list(result[:2]) for name, result in results.items()}
                store.record(_REFERENCES, known)
        scores = {trial.label: trial.scores for trial in parents if trial.label in known}
        self._base = scores["base"], {name: checked for name, (_, checked) in known["base"].items()}
        self._units = {name: _unit(name, scores, known) for name in self._items}

    def _chosen_teachers(self, parents: Sequence[Trial]) -> dict[str, Recipe]:
        """The source that scores best on each slice whose answers are written: what it writes is what to learn."""
        slices = self._trials.criteria.info.slices
        sources = [trial for trial in parents if trial.label != "base"] or list(parents)
        best = {n: max(sources, key=lambda t: t.scores[n]) for n in self._items if slices[n].learns}
        return {name: trial.recipe for name, trial in best.items()}

    def evaluate(self, trial: Trial) -> EvalTask[TrialResult]:
        """Computes a trial's gradient, writes it down, and scores the trial on all items: its margins steer the next
        step, and a prediction can be far off for one slice."""
        if trial.lacks_gradient:
            started = time.perf_counter()
            self._trials.observer.trial_started(trial)
            results = yield from self._slices(trial, self._tensors)
            seconds = time.perf_counter() - started
            spent = {"slopes": seconds, "total": seconds}
            failed = _first_error(results)
            if failed is not None:
                return TrialResult.failure(str(failed), spent)
            slopes = {
                name: {"loss": _short(loss), "checked": _short(checked), "slopes": self._by_gene(pulled)}
                for name, (loss, checked, pulled) in results.items()
            }
            trial = self._trials.store.note_slopes(trial, slopes, spent)
        duplicate = trial.duplicate_of is not None
        return (yield from (self._trials.copy(trial) if duplicate else self._trials.evaluate(trial)))

    def _slices(self, trial: Trial, tensors: tuple[str, ...]) -> EvalTask[dict[str, Any]]:
        """The result of `Evaluator.proxy_loss`, or its exception, for each slice: all at a time where there are
        workers."""
        results = yield [
            GradientJob(trial.recipe, name, *items, tensors, self._teachers.get(name))
            for name, items in self._items.items()
        ]
        return dict(zip(self._items, results, strict=True))

    def _by_gene(self, pulled: Mapping[str, ParameterSlopes]) -> list[float]:
        """[D], summed over the slopes of each tensor's parameters: a gene moves all tensors that take values from
        it."""
        total = dict.fromkeys(self._genes, 0.0)
        sources = list(self._space.models.sources)
        for tensor, parameters in pulled.items():
            for parameter, slopes in parameters.items():
                # Behind the sources stands the base, where it is a model like the others: it has no gene.
                owners = sources if parameter in self._of_sources else [""]
                for source, slope in zip(owners, slopes, strict=False):
                    shares = self._space.shares(parameter, source, tensor)
                    by_part = slope if isinstance(slope, tuple) else (slope,) * len(shares)
                    for (key, share), part in zip(shares, by_part, strict=False):  # frozen ones have no share
                        total[key] += share * part
        return [_short(value) for value in total.values()]

    # What they tell an optimizer.

    def outcome(self, trial: Trial) -> Outcome:
        """The trial's outcome, with the slopes of its objective and margins where it has some."""
        floors = self._leaderboard.floors
        outcome = floors.outcome(trial)
        if trial.slopes is None or outcome.failed:
            return outcome
        gates, scale = floors.gates, floors.scale
        # d score / d gene, by slice: a lower loss is a higher score.
        moved = {n: [-unit * s for s in trial.slopes[n]["slopes"]] for n, unit in self._units.items()}
        by_score = self._objective_by_score(trial, scale)
        objective = [sum(by_score[n] * slopes[i] for n, slopes in moved.items()) for i in range(len(self._genes))]
        floored = [name for name, gate in gates.items() if gate.floor is not None]
        still = [0.0] * len(self._genes)
        margins = tuple(tuple(s / scale[n] for s in moved.get(n, still)) for n in floored)
        checked = self._checked(trial)
        beyond = tuple((checked[n] - (gates[n].floor or 0.0)) / scale[n] for n in floored)
        return replace(outcome, slopes=Slopes(tuple(objective), margins, (self._objective(checked), beyond)))

    def _objective_by_score(self, trial: Trial, scale: Mapping[str, float]) -> dict[str, float]:
        """d objective / d score of each slice at the trial's scores, by central differences."""
        slopes = {}
        for name, value in trial.scores.items():
            step = _STEP * scale[name]
            above, below = (self._objective({**trial.scores, name: value + by}) for by in (step, -step))
            slopes[name] = (above - below) / (2 * step)
        return slopes

    def _checked(self, trial: Trial) -> dict[str, float]:
        """Every slice's score by the items for checking: the base's, and what the proxy loss is better than the base's;
        the trial's own where there is none."""
        assert trial.slopes is not None
        scores, checked = self._base
        gained = {n: unit * (checked[n] - trial.slopes[n]["checked"]) for n, unit in self._units.items()}
        return {name: scores[name] + gained[name] if name in gained else v for name, v in trial.scores.items()}

    def _objective(self, scores: Mapping[str, float]) -> float:
        objective = self._trials.criteria.objective
        try:
            return objective(scores)
        except TrialError:  # the geometric mean of a score just below 0
            return objective({name: max(0.0, value) for name, value in scores.items()})


def _first_error(results: Mapping[str, Any]) -> EvomergeError | None:
    """The first failure among results. An error that is no candidate's failure, such as a full disk, is raised."""
    errors = [result for result in results.values() if isinstance(result, Exception)]
    for error in errors:
        if not isinstance(error, EvomergeError):
            raise error
    return next((error for error in errors if isinstance(error, EvomergeError)), None)


def _split(info: SliceInfo, seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Splits a slice's search items: for slopes, and for checking. It goes by hash, so that other items change
    nothing."""

    def place(item: str) -> int:
        return int.from_bytes(hashlib.sha256(f"checked\0{seed}\0{item}".encode()).digest()[:6], "big")

    checked = frozenset(sorted(info.items, key=place)[: max(1, len(info.items) // _CHECKED)])
    return frozenset(info.items) - checked or checked, checked


def _unit(
    name: str, scores: Mapping[str, Mapping[str, float]], known: Mapping[str, Mapping[str, Sequence[float]]]
) -> float:
    """How much of the metric one unit of a slice's proxy loss is, by how far the parents are apart in both."""
    metrics, losses = [scored[name] for scored in scores.values()], [known[label][name][0] for label in scores]
    metric, loss = max(metrics) - min(metrics), max(losses) - min(losses)
    return metric / loss if metric > 0 and loss > 0 else 1.0


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
