"""Runs a patient and its parents, one after the other, and compares what they do."""

from __future__ import annotations

import gc
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge.errors import EvomergeError, TrialError
from evomerge.escape import shortened
from evomerge.evaluator.device import place_models
from evomerge.evaluator.evaluator import check_loadable, resident_model
from evomerge.evaluator.progress import Progress
from evomerge.evaluator.target import Target, load_evaluator
from evomerge.examine.findings.behaviour import PROMPTS, Behaviour, observe, replies
from evomerge.examine.findings.patient import Patient
from evomerge.files.objects import FitnessSpec
from evomerge.merging.plan.tokenizers import output_tokenizer
from evomerge.merging.resident.bank import SourceBank
from evomerge.scoring.slices import SliceInfo
from evomerge.types import SliceScore, SplitName

MERGE = "the merge"
_MOST_PROMPTS, _CHARACTERS = 6, 1000


@dataclass(frozen=True)
class Live:
    """What the models did.

    Attributes:
        behaviour: of the merge and its parents, by name.
        slices: of the fitness file.
        scores: by model, then by slice.
        replies: by model, what it writes after each prompt of the user's.
        notes: which models could not be run, and why.
        failed: why the merge itself could not be run.
    """

    behaviour: Mapping[str, Behaviour] = field(default_factory=dict)
    slices: Mapping[str, SliceInfo] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, SliceScore]] = field(default_factory=dict)
    replies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failed: str | None = None


def run_live(
    patient: Patient,
    model: str,
    parents: Mapping[str, str],
    spec: FitnessSpec | None,
    split: SplitName,
    device: str,
    memory: str | None,
    progress: Progress,
    asked: Sequence[str] = (),
) -> Live:
    """Runs the merge, then its parents. One model is in memory at a time. A parent that cannot be run is noted.
    `asked`: prompts of the user's, whose replies are kept."""
    live, prompts = Live(), list[str]()
    views = {v.name: v for v in patient.parents}
    for name, reference in {MERGE: model, **parents}.items():
        view = patient.model if name == MERGE else views[name]
        try:
            subject = _load(reference, spec, split, device, memory, progress)
            if spec is not None and not prompts:
                prompts = _prompts(subject.suite, split)
            progress.phase(f"running {name}")
            subject.make()
            seen, written = None, list[str]()
            if subject.tokenizer is not None and (spec is None or spec.model is None):
                seen = _observed(subject, view.ends, prompts or PROMPTS)
                written = replies(subject.model, subject.tokenizer, view.ends, asked)
            scores = subject.score(split, progress) if spec is not None else {}
        except EvomergeError as error:
            if name == MERGE:
                return Live(failed=str(error))
            live = replace(live, notes=(*live.notes, f"{name} could not be run: {error}"))
            continue
        if seen is not None and not seen.layers:
            live = replace(live, notes=(*live.notes, f"{name}: its tokenizer makes no tokens of plain text"))
        live = replace(
            live,
            behaviour={**live.behaviour, **({name: seen} if seen else {})},
            scores={**live.scores, **({name: scores} if scores else {})},
            slices=live.slices or subject.slices,
            replies={**live.replies, **({name: written} if written else {})},
        )
        del subject
        gc.collect()
    return live


def _observed(subject: _Subject, ends: Collection[int], prompts: Sequence[str]) -> Behaviour:
    """What a model does. TrialError where it cannot do anything."""
    try:
        return observe(subject.model, subject.tokenizer, ends, prompts)
    except Exception as error:  # files that do not fit each other can make transformers fail with anything
        raise TrialError(f"running it failed: {type(error).__name__}: {shortened(str(error), 200)}") from error


@dataclass(frozen=True)
class _Subject:
    """One loaded model."""

    target: Target
    resident: Any
    evaluator: Any

    @property
    def suite(self) -> Any:
        return self.evaluator.suite

    @property
    def slices(self) -> Mapping[str, SliceInfo]:
        return self.evaluator.suite.info.slices if self.evaluator else {}

    @property
    def model(self) -> Any:
        return self.resident.model

    @property
    def tokenizer(self) -> Any:
        return self.resident.tokenizer

    def make(self) -> None:
        """Gives the model its weights. Raises TrialError."""
        self.resident.materialize(self.target.recipe)

    def score(self, split: SplitName, progress: Progress) -> Mapping[str, SliceScore]:
        scores: Mapping[str, SliceScore] = self.evaluator.evaluate(
            self.target.recipe, split, progress.slice_started
        ).scores
        return scores


def _load(
    reference: str, spec: FitnessSpec | None, split: SplitName, device: str, memory: str | None, progress: Progress
) -> _Subject:
    """Loads a model alone, with its own tokenizer. One in float16 is run in float32: what overflows has to be seen."""
    target = Target.open(reference)
    if target.dtype == "float16":
        target = replace(target, dtype="float32")
    if spec is not None:
        evaluator = load_evaluator(target, target.planned, (), spec, split, device, memory, progress)
        return _Subject(target, evaluator.resident, evaluator)
    checkpoints = {c.reference: c for c in target.planned.checkpoints}
    placement = place_models(target.planned, target.dtype, checkpoints, device, memory)
    tokenizer = output_tokenizer(target.recipe.output, target.planned)
    plain = FitnessSpec(file=target.shape.path, slices={})
    check_loadable(plain, target.shape, target.planned, tokenizer)
    progress.phase(f"loading {reference}")
    bank = SourceBank(placement=placement)
    for checkpoint in target.planned.checkpoints:
        bank.add(checkpoint)
    resident = resident_model(plain, target.shape, bank, target.dtype, placement.room, target.planned, tokenizer)
    return _Subject(target, resident, None)


def _prompts(suite: Any, split: SplitName) -> list[str]:
    """The beginnings of some items of each slice, where it asks a language model."""
    found: list[str] = []
    for slice_ in suite.slices.values():
        requests = getattr(slice_.source, "requests", None)
        if requests is None:
            continue
        texts = [
            doc.instances[0].args[0] for task in requests(split) for doc in task.docs[:_MOST_PROMPTS] if doc.instances
        ]
        found += [t[:_CHARACTERS] for t in texts if isinstance(t, str) and t.strip()][:2]
    return list(dict.fromkeys(found))[:_MOST_PROMPTS]


def scored_apart(one: SliceScore, other: SliceScore) -> float | None:
    """How many standard errors a score is below another one; None where no error is known."""
    if one.stderr is None or other.stderr is None:
        return None
    error = (one.stderr**2 + other.stderr**2) ** 0.5
    return (other.value - one.value) / error if error > 0 else None
