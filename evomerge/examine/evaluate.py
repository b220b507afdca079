"""`evomerge.evaluate`: scores and gates of one checkpoint or recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.checkpoints.pickled import with_pickles
from evomerge.errors import InputError, Where
from evomerge.examine.eval_results import EvalResults, check_eval_results, write_eval_results
from evomerge.examine.references import check_places, needed_references, parents_of, source_names
from evomerge.examine.replies import Reply, side_by_side
from evomerge.files.fitness_file import read_fitness
from evomerge.recipe.mergekit import recipe_of
from evomerge.recipe.recipe import Recipe
from evomerge.registry import OBJECTIVES, load
from evomerge.scoring.gates import Gate, Verdict, judge, scales, settle
from evomerge.scoring.preflight import check_fitness
from evomerge.study.observer import Observer
from evomerge.types import Scores, SplitName

if TYPE_CHECKING:
    from evomerge.evaluator.evaluator import Evaluator
    from evomerge.scoring.slices import SliceInfo


@dataclass(frozen=True)
class Evaluated:
    """One model's scores on a split, each slice's gate and verdict, and the scores of the references needed.
    `eval_results`: files for the hub, where they were asked for; `replies`: to the prompts that were given."""

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
    eval_results: EvalResults | None = None
    replies: tuple[Reply, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """The scores in the metrics' own directions, by slice. (`scores` are oriented: higher is better.)"""
        return {name: self.slices[name].show(score.value) for name, score in self.scores.items()}

    @property
    def feasible(self) -> bool:
        return all(v.passed for v in self.verdicts)


@with_pickles
def evaluate(
    model: str | Path,
    fitness: str | Path,
    *,
    split: SplitName = "holdout",
    references: Mapping[str, str] | None = None,
    device: str = "auto",
    memory: str | None = None,
    trust_tasks: bool = False,
    allow_pickle: bool = False,
    eval_results: bool = False,
    prompts: Sequence[str] = (),
    observer: Observer | None = None,
) -> Evaluated:
    """Scores a checkpoint (folder, hub id, adapter) or a recipe (merged in memory) and holds it to its floors.

    Relative floors need the scores of their references. A recipe brings its base and sources; a source has the name of
    its folder. For a checkpoint, or under other names, `references` maps a name ("base", a source's) to a model.
    `device`, `memory`, `trust_tasks` and `allow_pickle` are as in `search`. `eval_results` writes the scores on whole
    public benchmarks into the model's folder, for the hub. `prompts`: texts; what the model, its base and its sources
    write after them is kept, too.

    Raises:
        InputError: an argument or a file is wrong.
        TrialError: the model could not be scored.
    """
    observer = observer or Observer()
    folder = check_eval_results(model, split) if eval_results else None
    spec = replace(read_fitness(Path(fitness)), trust_tasks=trust_tasks)
    if prompts and spec.model is not None:
        raise InputError("the model is no language model", "leave out the prompts", Where("--prompt"))
    recipe = recipe_of(model)
    check_places(recipe, [*([] if recipe else [model]), *(references or {}).values()])
    models = {**(parents_of(recipe) if recipe else {}), **(references or {})}
    check_fitness(spec, source_names(models))
    needed = needed_references(spec, models)
    # These import torch: what is wrong above is reported before.
    from evomerge.evaluator.target import Target, load_evaluator, score_references

    target = Target.open(model)
    reference_recipes = {name: target.beside(reference) for name, reference in needed.items()}
    asked = {name: target.beside(reference) for name, reference in models.items()} if prompts else {}
    beside = {**needed, **(models if prompts else {})}
    evaluator = load_evaluator(target, target.planned, beside.values(), spec, split, device, memory, observer, True)
    with closing(evaluator):
        reference_scores = score_references(evaluator, reference_recipes, split, observer)
        observer.phase("scoring the model")
        evaluation = evaluator.evaluate(target.recipe, split, observer.slice_started)
        written = _written(evaluator, {**asked, "the model": target.recipe}, prompts, observer) if prompts else {}
    target.check_unchanged()
    suite = evaluator.suite.info
    gates = settle(suite.slices, reference_scores)
    values = {name: score.value for name, score in evaluation.scores.items()}
    return Evaluated(
        model=str(model),
        split=split,
        digest=evaluation.digest,
        objective=load(OBJECTIVES[spec.objective])(values, suite.weights),
        slices=suite.slices,
        scores=evaluation.scores,
        gates=gates,
        verdicts=judge(evaluation.scores, gates, scales(reference_scores, gates), spec.confidence),
        references=reference_scores,
        confidence=spec.confidence,
        replies=side_by_side(prompts, written),
        eval_results=write_eval_results(folder, spec, suite.slices, evaluation.scores) if folder else None,
    )


def _written(
    evaluator: Evaluator, recipes: Mapping[str, Recipe], prompts: Sequence[str], observer: Observer
) -> dict[str, list[str]]:
    """What several models, by name, write after each prompt. Raises TrialError."""
    from evomerge.examine.findings.behaviour import replies

    resident, found = evaluator.resident, dict[str, list[str]]()
    assert resident.tokenizer is not None, "a language model has one"
    stated = getattr(getattr(resident.model, "generation_config", None), "eos_token_id", None)
    ends = [*(stated if isinstance(stated, list) else [stated]), resident.tokenizer.eos_token_id]
    for name, recipe in recipes.items():
        observer.phase(f"asking {name}")
        evaluator.materialized(recipe)
        found[name] = replies(resident.model, resident.tokenizer, {i for i in ends if i is not None}, prompts)
    return found
