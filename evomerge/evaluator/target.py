"""A model that is scored outside of a search: opened from headers, then in memory beside the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.identity import check_unchanged
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.errors import InputError
from evomerge.evaluator.core_space import prepare_spaces, space_bytes, unread
from evomerge.evaluator.device import place_models
from evomerge.evaluator.evaluator import Evaluator, check_loadable, decompose, resident_model
from evomerge.evaluator.progress import Progress
from evomerge.evaluator.serving import asks_engine, engine_bytes, engine_memory, model_bytes, servable, start_engine
from evomerge.files.objects import FitnessSpec
from evomerge.merging.plan.alignment import promoted
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.plan.plan import plan
from evomerge.merging.plan.tokenizers import output_tokenizer
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.factor_cache import FactorCache
from evomerge.merging.resident.materialize import as_it_is
from evomerge.merging.resident.stacks import prepare_stacks
from evomerge.recipe.mergekit import recipe_of
from evomerge.recipe.recipe import Recipe, alone, base_of
from evomerge.scoring.serving.serving import Serving
from evomerge.scoring.suite import Suite
from evomerge.types import Scores, SplitName


@dataclass(frozen=True)
class Target:
    """A checkpoint (folder, hub id, adapter) or a recipe, planned from headers.

    Attributes:
        name: as it was given.
        recipe: what makes it; a checkpoint's passes it through.
        is_merge: whether it was given as a recipe.
        shape: the checkpoint that a resident model is built from.
        dtype: of its weights in memory.
        headers: the checkpoints that were opened.
    """

    name: str
    recipe: Recipe
    is_merge: bool
    shape: Checkpoint
    planned: MergePlan
    dtype: str
    headers: SourceBank

    @classmethod
    def open(cls, model: str | Path) -> Target:
        """Opens a model. Raises InputError where there is no such model, or its recipe does not fit its checkpoints."""
        bank, merge = SourceBank(), recipe_of(model)
        if merge is None:
            shape = bank.add(Checkpoint.open(str(model)))
            recipe, dtype = as_it_is(shape.reference, shape.dtype), shape.dtype
            return cls(str(model), recipe, False, shape, plan(recipe, bank.open), dtype, bank)
        planned = plan(merge, bank.open)
        shape = bank.open(base_of(merge) or merge.models()[0])
        said = merge.output.out_dtype or merge.output.dtype
        dtype = said or promoted([shape.dtype, *{job.out for job in planned.jobs.values()}])
        return cls(str(model), merge, True, shape, planned, dtype, bank)

    def check_unchanged(self) -> None:
        """StoppedError where a file of a model that was opened has changed since: what was scored may be of two
        models."""
        check_unchanged(self.headers.checkpoints, "while it was scored", "run the same command again")

    def beside(self, reference: str) -> Recipe:
        """Returns the recipe of another model, to be compared with this one. Where this one is a merge with another
        vocabulary, the other is brought to it. InputError where there is no such model, or it has other tokens."""
        merge = next((d for d in self.recipe.documents if d.tokenizer and reference in Recipe((d,)).models()), None)
        if merge is not None:
            return alone(merge, reference, self.dtype)
        check_tokens(reference, Vocabulary.of(self.headers.open(reference).tokenizer_path), self)
        return as_it_is(reference, self.dtype)


def check_tokens(name: str, vocabulary: Vocabulary, target: Target) -> None:
    """Raises InputError where a model's tokens are not the target's: the same text would be other numbers to it."""
    expected = target.planned.vocabulary
    if vocabulary.missing and expected.missing:
        return
    if vocabulary != expected and vocabulary.tokens != expected.tokens:
        problem = f"{name} and {target.name} have different vocabularies"
        raise InputError(problem, "compare models that have the same tokens")


def load_evaluator(
    target: Target,
    planned: MergePlan,
    references: Iterable[str],
    spec: FitnessSpec,
    split: SplitName,
    device: str,
    memory: str | None,
    progress: Progress,
    serve: bool = False,
) -> Evaluator:
    """Loads a resident model with the target's tokenizer, the checkpoints of `planned` beside it, and the tasks. The
    references are read once and stay in their files. `serve`: an engine answers slices that ask for it, else the
    resident model answers all.

    Raises InputError: the model does not fit, or something is wrong with a checkpoint, a task or its data.
    """
    checkpoints = {c.reference: c for c in planned.checkpoints}
    factors = sum(wanted.bytes(job.shape) for job in planned.jobs.values() for wanted in job.decomposed.values())
    engine = engine_bytes(model_bytes(planned, target.dtype)) if serve and asks_engine(spec) else 0
    factors += space_bytes(planned)
    without = unread(planned, planned.checkpoints)
    placement = place_models(
        planned, target.dtype, checkpoints, device, memory, factors=factors, engine=engine, unread=without
    )
    for name, fact in placement.facts().items():
        progress.note(f"{name}: {fact}")
    tokenizer = output_tokenizer(target.recipe.output, target.planned)
    check_loadable(spec, target.shape, target.planned, tokenizer)
    progress.phase("loading the model")
    bank = SourceBank(placement=placement, kept=FactorCache())
    read = [*planned.checkpoints, *map(target.headers.open, references)]
    for checkpoint in read:
        bank.add(checkpoint)
    prepare_stacks(bank, target.recipe)
    decompose(planned, bank, progress)
    prepare_spaces(planned, bank, progress)
    resident = resident_model(spec, target.shape, bank, target.dtype, placement.room, target.planned, tokenizer)
    progress.phase("building the tasks")
    candidates = servable(target.planned, read, tokenizer, target.dtype, placement) if serve else None
    serving = Serving(candidates, engine_memory(candidates, placement) if candidates else None)
    suite = Suite.build(spec, resident.model, resident.tokenizer, split, serving)
    for line in suite.doubts():
        progress.warn(line)
    evaluator = Evaluator(resident, suite)
    start_engine(suite, resident.model, evaluator.materialized, [target.recipe], split, progress)
    return evaluator


def score_references(
    evaluator: Evaluator, references: Mapping[str, Recipe], split: SplitName, progress: Progress
) -> dict[str, Scores]:
    """Scores reference models, by name. Raises TrialError."""
    scores = {}
    for name, recipe in references.items():
        progress.phase(f"scoring {name}")
        scores[name] = evaluator.evaluate(recipe, split, progress.slice_started).scores
    return scores
