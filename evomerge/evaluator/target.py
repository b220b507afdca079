"""A model that is scored outside of a search: opened from headers, then in memory beside the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.errors import InputError
from evomerge.evaluator.device import place_models
from evomerge.evaluator.evaluator import Evaluator, resident_model
from evomerge.examine.line import Line
from evomerge.examine.references import base_of, recipe_of
from evomerge.files.objects import FitnessSpec
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.plan.plan import plan
from evomerge.merging.plan.tokenizers import output_tokenizer
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import as_it_is
from evomerge.recipe.recipe import Recipe, alone
from evomerge.scoring.suite import Suite
from evomerge.study.observer import Observer
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
        """Raises InputError where there is no such model, or its recipe does not fit its checkpoints."""
        bank, merge = SourceBank(), recipe_of(model)
        if merge is None:
            shape = bank.add(Checkpoint.open(str(model)))
            recipe, dtype = as_it_is(shape.reference, shape.dtype), shape.dtype
            return cls(str(model), recipe, False, shape, plan(recipe, bank.open), dtype, bank)
        planned = plan(merge, bank.open)
        shape = bank.open(base_of(merge) or merge.models()[0])
        dtype = merge.output.out_dtype or merge.output.dtype or shape.dtype
        return cls(str(model), merge, True, shape, planned, dtype, bank)

    def beside(self, reference: str) -> Recipe:
        """The recipe of another model, to be compared with this one: brought to its vocabulary where this one is a
        merge with a vocabulary of its own. InputError where there is no such model, or it has other tokens."""
        merge = next((d for d in self.recipe.documents if d.tokenizer and reference in Recipe((d,)).models()), None)
        if merge is not None:
            return alone(merge, reference, self.dtype)
        check_tokens(reference, Vocabulary.of(self.headers.open(reference).tokenizer_path), self)
        return as_it_is(reference, self.dtype)

    def line_from(self, start: str | Path, observer: Observer) -> tuple[Line, MergePlan]:
        """The line from another model to this one, and the plan of its middle, which reads all checkpoints of both.

        Raises:
            InputError: there is no such model, or the two do not have the same tensors and tokens.
        """
        if recipe_of(start) is None:
            recipe, dtype = self.beside(str(start)), self.headers.open(str(start)).dtype
        else:
            other = Target.open(start)
            check_tokens(other.name, other.planned.vocabulary, self)
            for checkpoint in other.planned.checkpoints:
                _add(self.headers, checkpoint, other)
            recipe, dtype = other.recipe, other.dtype
        if dtype != self.dtype:
            observer.warn(f"{start} is in {dtype}; it is scored in {self.dtype}, as {self.name} is")
        line = Line(recipe, self.recipe, self.dtype)
        return line, plan(line.at(0.5), self.headers.open)


def _add(bank: SourceBank, checkpoint: Checkpoint, other: Target) -> None:
    if bank.open(checkpoint.reference, checkpoint.where).resolved() != checkpoint.resolved():
        problem = f"{checkpoint.reference} of {other.name} is another model than in the other recipe"
        raise InputError(problem, "write absolute paths", checkpoint.where)


def check_tokens(name: str, own: Vocabulary, subject: Target) -> None:
    """InputError where a model's tokens are not the subject's: the same text would be other numbers to it."""
    theirs = subject.planned.vocabulary
    if own.missing and theirs.missing:
        return
    if own != theirs and own.tokens != theirs.tokens:
        problem = f"{name} and {subject.name} have different vocabularies"
        raise InputError(problem, "compare models that have the same tokens")


def load_bench(
    subject: Target,
    planned: MergePlan,
    references: Iterable[str],
    spec: FitnessSpec,
    split: SplitName,
    device: str,
    memory: str | None,
    observer: Observer,
) -> Evaluator:
    """A resident model with the subject's tokenizer, the checkpoints of `planned` beside it, and the tasks. The
    references, read once, stay in their files.

    Raises InputError: the model does not fit, or something is wrong with a checkpoint, a task or its data.
    """
    placement = place_models(planned, subject.dtype, {c.reference: c for c in planned.checkpoints}, device, memory)
    for about, line in placement.facts().items():
        observer.note(f"{about}: {line}")
    tokenizer = output_tokenizer(subject.recipe.output, subject.planned)
    observer.phase("loading the model")
    bank = SourceBank(placement=placement)
    for checkpoint in (*planned.checkpoints, *map(subject.headers.open, references)):
        bank.add(checkpoint)
    resident = resident_model(spec, subject.shape, bank, subject.dtype, placement.room, subject.planned, tokenizer)
    observer.phase("building the tasks")
    return Evaluator(resident, Suite.build(spec, resident.model, resident.tokenizer, split))


def measure(
    bench: Evaluator, references: Mapping[str, Recipe], split: SplitName, observer: Observer
) -> dict[str, Scores]:
    """Score reference models, by name. Raises TrialError."""
    measured = {}
    for name, recipe in references.items():
        observer.phase(f"scoring {name}")
        measured[name] = bench.evaluate(recipe, split, observer.slice_started).scores
    return measured
