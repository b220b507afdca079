"""`evomerge.path`: scores and loss along the straight line between two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.checkpoints.pickled import with_pickles
from evomerge.errors import InputError, TrialError, Where
from evomerge.examine.references import check_places, needed_references, parents_of, source_names
from evomerge.files.fitness_file import read_fitness
from evomerge.interrupts import answered, listening, recognized
from evomerge.recipe.mergekit import recipe_of
from evomerge.recipe.recipe import base_of
from evomerge.registry import OBJECTIVES, load
from evomerge.safety.paths import absolute
from evomerge.scoring.gates import Gate, Verdict, judge, scales, settle
from evomerge.scoring.preflight import check_fitness
from evomerge.study.observer import Observer
from evomerge.types import Scores, SplitName, shown

if TYPE_CHECKING:
    from evomerge.scoring.slices import SliceInfo


_MOST_POINTS = 10_000
"""Each is a merge and an evaluation; a picture has some thousand columns."""


@dataclass(frozen=True)
class Point:
    """One point of the line. `t` is 0 at the start and 1 at the end; `reason` is that of a failure."""

    t: float
    digest: str = ""
    objective: float | None = None
    scores: Scores = field(default_factory=dict)
    verdicts: Sequence[Verdict] = ()
    reason: str | None = None

    @property
    def feasible(self) -> bool:
        """Whether every gate passed."""
        return self.reason is None and all(v.passed for v in self.verdicts)


@dataclass(frozen=True)
class Barrier:
    """The largest excess of the loss over the straight line between the ends' losses.

    height: in nats per token; 0 where the loss never rises above that line.
    t: where the excess is largest.
    """

    height: float
    t: float


Curve = Sequence[tuple[float, float]]
"""(t, loss in nats per token), by t."""


@dataclass(frozen=True)
class ScoredPath:
    """The scored points of a line, by t. `wanted` holds the t of all points that were asked for, `counts` the number of
    items of each slice."""

    start: str
    end: str
    split: SplitName
    slices: Mapping[str, SliceInfo]
    gates: Mapping[str, Gate]
    points: Sequence[Point]
    wanted: Sequence[float]
    references: Mapping[str, Scores]
    confidence: float | None
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{short_name(self.start)} → {short_name(self.end)}, {self.split} items"

    @property
    def complete(self) -> bool:
        return len(self.points) == len(self.wanted)

    @property
    def feasible(self) -> bool:
        """Whether some point passes every floor."""
        return any(point.feasible for point in self.points)

    @property
    def losses(self) -> dict[str, Curve]:
        """The curve of every slice that has a loss."""
        scored = [p for p in self.points if p.scores]
        curves = {n: [(p.t, loss) for p in scored if (loss := p.scores[n].loss) is not None] for n in self.slices}
        return {name: curve for name, curve in curves.items() if curve}

    @property
    def mean_loss(self) -> Curve:
        """The mean of the slices' losses, all counting alike."""
        curves = [dict(curve) for curve in self.losses.values()]
        return [(t, math.fsum(c[t] for c in curves) / len(curves)) for t in (curves[0] if curves else ())]

    def barrier(self, curve: Curve) -> Barrier | None:
        """Returns the loss barrier of a curve; None where an end of the line was not scored."""
        ends = self.wanted[0], self.wanted[-1]
        return barrier(curve) if curve and (curve[0][0], curve[-1][0]) == ends else None


class PathInterrupted(KeyboardInterrupt):
    """The user stopped a path after its first point; `partial` has the scored points."""

    def __init__(self, partial: ScoredPath) -> None:
        super().__init__()
        self.partial = partial


@listening()
@with_pickles
def path(
    start: str | Path,
    end: str | Path | None = None,
    *,
    fitness: str | Path,
    points: int = 11,
    first: float = 0.0,
    last: float = 1.0,
    split: SplitName = "holdout",
    references: Mapping[str, str] | None = None,
    device: str = "auto",
    memory: str | None = None,
    trust_tasks: bool = False,
    allow_pickle: bool = False,
    observer: Observer | None = None,
) -> ScoredPath:
    """Scores `points` models, evenly spaced on the line ``(1 - t) start + t end`` from t = `first` to t = `last`.

    Each end is a checkpoint (folder, hub id, adapter) or a recipe; a recipe alone is the end of the line that starts at
    its base, so that t scales what the merge does to the base. Prompts are written with the end's tokenizer and chat
    template. Floors, `references`, `device`, `memory`, `trust_tasks` and `allow_pickle`
    are as in `evaluate`.

    Raises:
        InputError: an argument or a file is wrong.
        TrialError: a reference could not be scored. A point that could not be scored is kept, with its reason.
        PathInterrupted: on Ctrl-C, once a point was scored.
    """
    observer = observer or Observer()
    wanted = _spaced(points, first, last)
    spec = replace(read_fitness(Path(fitness)), trust_tasks=trust_tasks)
    start, end = _ends(start, end)
    recipe = recipe_of(end)
    for model, merge in ((start, recipe_of(start)), (end, recipe)):
        check_places(merge, [] if merge else [model])
    check_places(None, (references or {}).values())
    models = {**(parents_of(recipe) if recipe else {}), **(references or {})}
    check_fitness(spec, source_names(models))
    needed = needed_references(spec, models)
    # These import torch: what is wrong above is reported before.
    from evomerge.evaluator.target import Target, load_evaluator, score_references
    from evomerge.examine.line import line_between

    target = Target.open(end)
    line, planned = line_between(Target.open(start), target, observer)
    reference_recipes = {name: target.beside(reference) for name, reference in needed.items()}
    evaluator = load_evaluator(target, planned, needed.values(), spec, split, device, memory, observer, True)
    reference_scores = score_references(evaluator, reference_recipes, split, observer)
    observer.phase(f"scoring {len(wanted)} points")
    suite = evaluator.suite.info
    counts = {name: slice_.counts[split] for name, slice_ in evaluator.suite.slices.items()}
    gates = settle(suite.slices, reference_scores)
    objective = load(OBJECTIVES[spec.objective])

    def score(t: float) -> Point:
        try:
            evaluation = evaluator.evaluate(line.at(t), split, observer.slice_started)
            target.check_unchanged()
            value = objective({name: score.value for name, score in evaluation.scores.items()}, suite.weights)
        except TrialError as error:
            return Point(t, reason=str(error))
        verdicts = judge(evaluation.scores, gates, scales(reference_scores, gates), spec.confidence)
        return Point(t, evaluation.digest, value, evaluation.scores, verdicts)

    def result(scored: Sequence[Point]) -> ScoredPath:
        return ScoredPath(
            start=str(start),
            end=str(end),
            split=split,
            slices=suite.slices,
            gates=gates,
            points=sorted(scored, key=lambda point: point.t),
            wanted=wanted,
            references=reference_scores,
            confidence=spec.confidence,
            counts=counts,
        )

    with closing(evaluator):
        return _walk(wanted, score, result, observer)


def _walk(
    wanted: Sequence[float],
    score: Callable[[float], Point],
    result: Callable[[Sequence[Point]], ScoredPath],
    observer: Observer,
) -> ScoredPath:
    """Scores all points, the ends first: with them, every further point says something about the barrier."""
    scored: list[Point] = []
    try:
        for t in (wanted[0], wanted[-1], *wanted[1:-1]):
            observer.progress(f"point {len(scored) + 1} of {len(wanted)}: t = {t:g}", len(scored) / len(wanted))
            with recognized():
                point = score(t)
            scored.append(point)
            observer.note(describe_point(point, result(scored)))
    except KeyboardInterrupt:
        if scored:
            answered()
            raise PathInterrupted(result(scored)) from None
        raise
    return result(scored)


def describe_point(point: Point, path: ScoredPath) -> str:
    """Describes a point in one line."""
    if point.reason is not None:
        return f"t = {point.t:g} failed: {point.reason}"
    scores = " ".join(f"{name} {shown(path.slices[name].show(s.value))}" for name, s in point.scores.items())
    missed = [v.slice for v in point.verdicts if not v.passed]
    return f"t = {point.t:g}: {scores} {'misses ' + ', '.join(missed) if missed else 'passes'}"


def short_name(model: str) -> str:
    """Returns the last part of each name in a reference: models/base+adapters/x -> base+x."""
    return "+".join(Path(part).name for part in model.split("+"))


def barrier(curve: Curve) -> Barrier | None:
    """Returns the loss barrier of a curve between its first and its last point; None where an end's loss is not finite.

    Equation 1 of Entezari et al. 2022 (arXiv:2110.06296). Where both ends have one loss it is the error barrier of
    Frankle et al. 2020 (arXiv:1912.05671) and the loss barrier of Ainsworth et al. 2022 (arXiv:2209.04836), which
    subtract the mean of the two.
    """
    (t0, loss0), (t1, loss1) = curve[0], curve[-1]
    if not (math.isfinite(loss0) and math.isfinite(loss1)):
        return None
    slope = (loss1 - loss0) / (t1 - t0) if t1 > t0 else 0.0
    inner = [(loss - loss0 - slope * (t - t0), t) for t, loss in curve[1:-1]]
    height, t = max(inner, key=lambda pair: pair[0], default=(0.0, t0))
    return Barrier(height, t) if height > 0 else Barrier(0.0, t0)


def _spaced(points: int, first: float, last: float) -> list[float]:
    if points < 2:
        raise InputError(f"{points} points make no line", "give at least 2", Where("--points"))
    if points > _MOST_POINTS:
        raise InputError(f"{points} points are more than {_MOST_POINTS}", "give fewer", Where("--points"))
    if not (math.isfinite(first) and math.isfinite(last) and first < last):
        problem = f"the line from {first:g} to {last:g} has no length"
        raise InputError(problem, "let --from be less than --to", Where("--from"))
    # In steps as they are written: 0.3, not 0.30000000000000004.
    return [float(f"{first + (last - first) * i / (points - 1):.12g}") for i in range(points)]


def _ends(start: str | Path, end: str | Path | None) -> tuple[str | Path, str | Path]:
    """Returns both ends; of a recipe alone, its base and itself."""
    if end is not None:
        if absolute(start) == absolute(end):
            raise InputError(f"both ends are {start}", "give two models")
        return start, end
    recipe = recipe_of(start)
    if recipe is None:
        raise InputError(f"{start} is one model", "give a second one, or a recipe (.yaml)")
    base = base_of(recipe)
    if base is None:
        raise InputError(f"{start}: the recipe has no base_model to start from", "give two models: A and the recipe")
    return base, start
