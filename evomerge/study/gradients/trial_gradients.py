"""Slopes of a study's trials: which items they are taken on, how they are found, and what an optimizer is told of them.

A metric has no slope, but a slice's surrogate has (`scoring.tasks.proxy_loss`): how unlikely the right answers are. A
quarter of each slice's search items is kept for checking, so that an optimizer can stop before it only learns the other
items by heart. One unit of a surrogate counts as so much of the metric as both differ between base and sources.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from evomerge.errors import EvomergeError, InputError, TrialError
from evomerge.evaluator.executor import EvalTask
from evomerge.recipe.recipe import Recipe
from evomerge.registry import CHOICES
from evomerge.scoring.slices import SliceInfo
from evomerge.study.run.trial import Trial
from evomerge.study.smooth import UNWEIGHTED
from evomerge.types import Outcome, Slopes

if TYPE_CHECKING:
    from collections.abc import Callable

    from evomerge.evaluator.evaluator import Evaluator
    from evomerge.merging.resident.slopes import ParameterSlopes
    from evomerge.study.session import Session

_CHECKED = 4
"""One of so many items is for checking."""

_DIGITS = 7
_STEP = 1e-4  # of a slice's scale: for the slopes of the objective by scores

_REFERENCES = "surrogates"
"""The fact that holds the surrogates of base and sources: label -> slice -> [loss, checked]."""


@dataclass(frozen=True, eq=False)
class GradientJob:
    """A slice's proxy loss, and its slopes by the parameters of the merge of `tensors`: see `Evaluator.proxy_loss`."""

    recipe: Recipe
    name: str
    steered: frozenset[str]
    checked: frozenset[str]
    tensors: tuple[str, ...]

    def run(self, bench: Evaluator, on_slice: Callable[[str], None]) -> Any:
        on_slice(f"slopes of {self.name}")
        return bench.proxy_loss(self.recipe, self.name, self.steered, self.checked, self.tensors)


class TrialGradients:
    """For one session of a run whose references are scored."""

    def __init__(self, session: Session) -> None:
        """InputError where no slice has a surrogate, or `gradient` would have to follow one that has none."""
        self._session, self._space = session, session.plan.space
        slices = session.outline.slices
        _check_slices(session, slices)
        named = {name: piece for name, piece in slices.items() if not piece.no_proxy_loss}
        self._items = {name: _dealt(piece, session.plan.fitness.split_seed) for name, piece in named.items()}
        self._genes = [d.key for d in self._space.dimensions]
        declared = [p for method in self._space.spec.methods for p in CHOICES[method].parameters]
        self._of_sources = {p.name for p in declared if p.scope == "source"}
        self._tensors = tuple(t for t in self._space.models.tensors if self._reached(t))

    def _reached(self, tensor: str) -> bool:
        """Whether a gene has a part in its merge."""
        places = ["", *self._space.models.sources]
        return any(self._space.shares(g.name, s, tensor) for g in self._space.spec.genes for s in places)

    # Finding slopes.

    def score_references(self) -> None:
        """Find the surrogates of base and sources, which later ones are compared with."""
        known = dict(self._session.store.facts.get(_REFERENCES, {}))
        for trial in self._session.store.trials():
            if trial.is_parent and trial.state == "complete" and trial.label not in known:
                self._session.observer.phase(f"surrogates of {trial.label}")
                found = dict(self._session.each(self._slice(trial, name, ()) for name in self._items))
                failed = next((e for e in found.values() if isinstance(e, EvomergeError)), None)
                if failed is not None:
                    mend = "use another optimizer, or a smaller batch_size where memory ran out"
                    raise InputError(f"{trial.label} has no surrogate scores ({failed})", mend)
                known[trial.label] = {name: list(about[:2]) for name, about in found.items()}
                self._session.store.record(_REFERENCES, known)
        parents = {t.label: t.scores for t in self._session.store.trials() if t.label in known and t.is_parent}
        self._base = parents["base"], {name: checked for name, (_, checked) in known["base"].items()}
        self._units = {name: _unit(name, parents, known) for name in self._items}

    def find(self, trial: Trial) -> Trial:
        """Find a trial's slopes, all slices at a time where there are workers, and write them down with it; or its
        failure."""
        started = time.perf_counter()
        self._session.observer.trial_started(trial)
        found = dict(self._session.each(self._slice(trial, name, self._tensors) for name in self._items))
        return self._kept(trial, found, time.perf_counter() - started)

    def find_alone(self, trial: Trial) -> EvalTask[Trial]:
        """The same while other trials are being scored."""
        started, found = time.perf_counter(), {}
        for name in self._items:
            _, found[name] = yield from self._slice(trial, name, self._tensors)
        return self._kept(trial, found, time.perf_counter() - started)

    def _slice(self, trial: Trial, name: str, tensors: tuple[str, ...]) -> EvalTask[tuple[str, Any]]:
        """What `Evaluator.proxy_loss` gives, or why it gives nothing: the other slices' jobs are under way."""
        try:
            return name, (yield GradientJob(trial.recipe, name, *self._items[name], tensors))
        except (TrialError, InputError) as error:
            return name, error

    def _kept(self, trial: Trial, found: Mapping[str, Any], seconds: float) -> Trial:
        spent = {"slopes": seconds, "total": seconds}
        failed = next((e for e in found.values() if isinstance(e, EvomergeError)), None)
        if failed is not None:
            return self._session.fail(trial, str(failed), spent)
        slopes = {
            name: {"loss": _short(loss), "checked": _short(checked), "slopes": self._by_gene(pulled)}
            for name, (loss, checked, pulled) in found.items()
        }
        return self._session.store.note_slopes(trial, slopes, spent)

    def _by_gene(self, pulled: Mapping[str, ParameterSlopes]) -> list[float]:
        """[D], out of the slopes of each tensor's parameters: a gene moves all tensors that take values from it."""
        total = dict.fromkeys(self._genes, 0.0)
        sources = list(self._space.models.sources)
        for tensor, parameters in pulled.items():
            for parameter, slopes in parameters.items():
                # Behind the sources stands the base, where it is a model like the others: it has no gene.
                owners = sources if parameter in self._of_sources else [""]
                for source, slope in zip(owners, slopes, strict=False):
                    for key, share in self._space.shares(parameter, source, tensor):
                        total[key] += share * slope
        return [_short(value) for value in total.values()]

    # What they mean to an optimizer.

    def slopes(self, trial: Trial, outcome: Outcome) -> Outcome:
        """The outcome with the slopes of its objective and margins, where the trial has some."""
        if trial.slopes is None or outcome.failed:
            return outcome
        leaderboard = self._session.floors(())
        gates, scale = leaderboard.gates, leaderboard.scale
        moved = {n: [-unit * s for s in trial.slopes[n]["slopes"]] for n, unit in self._units.items()}
        by_score = self._objective_by_score(trial, scale)
        objective = [sum(by_score[n] * own[i] for n, own in moved.items()) for i in range(len(self._genes))]
        floors = [name for name, gate in gates.items() if gate.floor is not None]
        still = [0.0] * len(self._genes)
        margins = tuple(tuple(s / scale[n] for s in moved.get(n, still)) for n in floors)
        checked = self._checked(trial)
        beyond = tuple((checked[n] - (gates[n].floor or 0.0)) / scale[n] for n in floors)
        return replace(outcome, slopes=Slopes(tuple(objective), margins, (self._objective(checked), beyond)))

    def _objective_by_score(self, trial: Trial, scale: Mapping[str, float]) -> dict[str, float]:
        """d objective / d score of each slice at the trial's scores, by differences."""
        found = {}
        for name, value in trial.scores.items():
            step = _STEP * scale[name]
            above, below = (self._objective({**trial.scores, name: value + by}) for by in (step, -step))
            found[name] = (above - below) / (2 * step)
        return found

    def _checked(self, trial: Trial) -> dict[str, float]:
        """Every slice's score by the items for checking: the base's, and what the surrogate is better than the base's;
        the trial's own where there is none."""
        assert trial.slopes is not None
        scores, checked = self._base
        gained = {n: unit * (checked[n] - trial.slopes[n]["checked"]) for n, unit in self._units.items()}
        return {name: scores[name] + gained[name] if name in gained else v for name, v in trial.scores.items()}

    def _objective(self, scores: Mapping[str, float]) -> float:
        try:
            return self._session.objective(scores)
        except TrialError:  # the geometric mean of a score just below 0
            return self._session.objective({name: max(0.0, value) for name, value in scores.items()})


def _dealt(piece: SliceInfo, seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """A slice's search items: those that slopes are taken on, and those for checking; by hash, so that other items
    change nothing."""

    def place(item: str) -> int:
        return int.from_bytes(hashlib.sha256(f"checked\0{seed}\0{item}".encode()).digest()[:6], "big")

    checked = frozenset(sorted(piece.items, key=place)[: max(1, len(piece.items) // _CHECKED)])
    return frozenset(piece.items) - checked or checked, checked


def _unit(
    name: str, scores: Mapping[str, Mapping[str, float]], known: Mapping[str, Mapping[str, Sequence[float]]]
) -> float:
    """How much of the metric one unit of a slice's surrogate is, by how far the parents are apart in both."""
    metrics, losses = [own[name] for own in scores.values()], [known[label][name][0] for label in scores]
    metric, loss = max(metrics) - min(metrics), max(losses) - min(losses)
    return metric / loss if metric > 0 and loss > 0 else 1.0


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _check_slices(session: Session, slices: Mapping[str, SliceInfo]) -> None:
    """What can only be said once the tasks are built."""
    spec, fitness = session.plan.spec, session.plan.fitness
    for name, piece in slices.items():
        if piece.no_proxy_loss and piece.weight > 0 and spec.optimizer["name"] == "gradient":
            problem = f"gradient cannot follow slice {name}: {piece.no_proxy_loss}"
            raise InputError(problem, UNWEIGHTED, fitness.slices[name].where)
    if all(piece.no_proxy_loss for piece in slices.values()):
        name, piece = next(iter(slices.items()))
        problem = f"no slice has slopes to follow; {name}: {piece.no_proxy_loss}"
        raise InputError(
            problem, "add one of texts or choices, or search without gradients", fitness.slices[name].where
        )
