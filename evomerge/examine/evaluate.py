"""`evomerge.evaluate`: scores and gates of one checkpoint or recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.examine.references import needed_references, parents_of, recipe_of, source_names
from evomerge.files.fitness_file import read_fitness
from evomerge.registry import OBJECTIVES, load
from evomerge.scoring.gates import Gate, Verdict, judge, scales, settle
from evomerge.scoring.preflight import check_fitness
from evomerge.study.observer import Observer
from evomerge.types import Scores, SplitName

if TYPE_CHECKING:
    from evomerge.scoring.slices import SliceInfo


@dataclass(frozen=True)
class Evaluated:
    """One model's scores on a split, each slice's gate and verdict, and the scores of the references needed."""

    model: str
    split: SplitName
    digest: str
    objective: float
    slices: Mapping[str, SliceInfo]
    scores: Scores
    gates: Mapping[str, Gate]
    verdicts: list[Verdict]
    references: Mapping[str, Scores]
    confidence: float | None

    @property
    def feasible(self) -> bool:
        return all(v.passed for v in self.verdicts)


def evaluate(
    model: str | Path,
    fitness: str | Path,
    *,
    split: SplitName = "holdout",
    references: Mapping[str, str] | None = None,
    device: str = "auto",
    memory: str | None = None,
    observer: Observer | None = None,
) -> Evaluated:
    """Score a checkpoint (folder, hub id, adapter) or a recipe (merged in memory) and hold it to its floors.

    Relative floors need their references measured: a recipe brings its base and sources (a source is called as its
    folder is); for a checkpoint, or under other names, `references` maps a name ("base", a source's) to a model.
    `device` and `memory` are as in `search`.

    Raises:
        InputError: something that was given is wrong.
        TrialError: the model could not be scored.
    """
    observer = observer or Observer()
    spec = read_fitness(Path(fitness))
    recipe = recipe_of(model)
    given = {**(parents_of(recipe) if recipe else {}), **(references or {})}
    check_fitness(spec, source_names(given))
    needed = needed_references(spec, given)
    from evomerge.evaluator.target import (  # imports torch: what is wrong above is told before
        Target,
        load_bench,
        measure,
    )

    subject = Target.open(model)
    compared = {name: subject.beside(reference) for name, reference in needed.items()}
    bench = load_bench(subject, subject.planned, needed.values(), spec, split, device, memory, observer)
    measured = measure(bench, compared, split, observer)
    observer.phase("scoring the model")
    evaluation = bench.evaluate(subject.recipe, split, observer.slice_started)
    suite = bench.suite.info
    gates = settle(suite.slices, measured)
    verdicts = judge(evaluation.scores, gates, scales(measured, gates), spec.confidence)
    values = {name: score.value for name, score in evaluation.scores.items()}
    objective = load(OBJECTIVES[spec.objective])(values, suite.weights)
    about = (str(model), split, evaluation.digest, objective, suite.slices)
    return Evaluated(*about, evaluation.scores, gates, verdicts, measured, spec.confidence)
