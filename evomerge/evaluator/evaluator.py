"""The workbench: one resident model, the sources beside it, the tasks built once. A recipe in, scores out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.preflight import check_configured
from evomerge.errors import InputError, TrialError
from evomerge.evaluator.device import place_models
from evomerge.evaluator.shares import Share
from evomerge.evaluator.step_memory import StepMemory, planned_step
from evomerge.files.objects import FitnessSpec
from evomerge.merging.plan.jobs import Plan as MergePlan
from evomerge.merging.plan.plan import plan as planned
from evomerge.merging.plan.tokenizers import OutputTokenizer, output_tokenizer
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.built import BuiltResident
from evomerge.merging.resident.materialize import Resident
from evomerge.merging.resident.placement import Placement, size
from evomerge.merging.resident.slopes import ParameterSlopes, Pulls
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.python.functions import ModelBuilder
from evomerge.scoring.suite import Suite
from evomerge.study.observer import Observer
from evomerge.study.prepare import Plan
from evomerge.study.run.evaluation import Evaluation
from evomerge.types import SplitName


class Evaluator:
    """Everything that evaluating a candidate needs, loaded once."""

    def __init__(self, resident: Resident | BuiltResident, suite: Suite) -> None:
        self.resident, self.suite = resident, suite
        self._holds: tuple[str, str] | None = None
        self._pulls: Pulls | None = None
        self._memory: StepMemory | None = None

    @classmethod
    def load(cls, plan: Plan, placement: Placement, observer: Observer) -> Evaluator:
        """Load sources and tasks. Raises InputError, for NaN in a source among other things."""
        for line in plan.tokens.dropped:
            observer.warn(line)
        for line in plan.tokens.filled:
            observer.phase(line)
        for about, line in placement.facts().items():
            observer.note(f"{about}: {line}")
        observer.phase("loading the base and its sources")
        bank = _filled(SourceBank(placement=placement), plan, observer)
        average = plan.space.uniform()
        merge = planned(average, bank.open)
        tokenizer = output_tokenizer(average.output, merge)
        dtype = plan.space.models.dtype
        resident = resident_model(plan.fitness, plan.base, bank, dtype, placement.room, merge, tokenizer)
        observer.phase("building the tasks")
        bench = cls(resident, Suite.build(plan.fitness, resident.model, resident.tokenizer))
        bench._memory = StepMemory.of(plan, merge, min(placement.reserves.values()))
        return bench

    def evaluate(
        self,
        recipe: Recipe,
        split: SplitName,
        on_slice: Callable[[str], None],
        chosen: Mapping[str, frozenset[str]] | None = None,
    ) -> Evaluation:
        """Materialize `recipe` in place and score it, on the items that are `chosen` for each slice or on all of the
        split's. Raises TrialError."""
        started = time.perf_counter()
        digest = self._materialized(recipe)
        merged = time.perf_counter()
        try:
            scores = self.suite.score(split, on_slice, chosen)
        except TrialError:
            self._holds = None  # whoever failed may have changed the weights
            raise
        ended = time.perf_counter()
        return Evaluation(scores, digest, {"materialize": merged - started, "score": ended - merged})

    def proxy_loss(
        self, recipe: Recipe, name: str, steered: frozenset[str], checked: frozenset[str], tensors: Collection[str]
    ) -> tuple[float, float, dict[str, ParameterSlopes]]:
        """A slice's proxy loss (`Suite.proxy_loss`) on two sets of items, and, for those of the merged tensors that are
        named, the slopes of the first by their parameters. Raises TrialError."""
        self._materialized(recipe)
        assert isinstance(self.resident, Resident), "only language models have proxy losses"
        if not tensors:
            return self.suite.proxy_loss(name, steered), self.suite.proxy_loss(name, checked), {}
        if self._pulls is None:
            self._pulls = self.resident.pulls()
        try:
            with self._pulls.open(tensors):
                loss = self.suite.proxy_loss(name, steered, backward=True, checkpointing=self._is_tight(name, steered))
        except TrialError:
            self._pulls = None  # it holds a part of the slopes
            raise
        slopes = self._pulls.slopes()
        # A head that is stored besides the embeddings that it is has none: what moves the model is written last.
        found = {tensor: slopes[tensor] for tensor in tensors if tensor in slopes}
        return loss, self.suite.proxy_loss(name, checked), found

    def _is_tight(self, name: str, items: frozenset[str]) -> bool:
        """Whether a backward pass on these items would take more memory than is kept for it."""
        loss = self.suite.slices[name].proxy_loss
        return self._memory is not None and loss is not None and self._memory.is_tight(loss.largest(items))

    def _materialized(self, recipe: Recipe) -> str:
        """The digest of the model, which is made to be `recipe` unless it is still."""
        if self._holds is None or self._holds[0] != recipe.id:
            self._holds = self._pulls = None
            self._holds = recipe.id, self.resident.materialize(recipe)
        return self._holds[1]


def resident_model(
    fitness: FitnessSpec,
    base: Checkpoint,
    bank: SourceBank,
    dtype: str,
    room: Mapping[str, int],
    planned: MergePlan,
    tokenizer: OutputTokenizer,
) -> Resident | BuiltResident:
    """The model in memory that candidates are written into: transformers' language model, or what the fitness file's
    `model` builds. InputError where it cannot be built."""
    if fitness.model is None:
        check_configured(base)
        return Resident(base, bank, dtype, room, planned=planned, tokenizer=tokenizer.load())
    given = None if tokenizer.vocabulary.missing else tokenizer.load()
    try:
        return BuiltResident(base, bank, dtype, room, ModelBuilder(fitness.model), planned=planned, tokenizer=given)
    except TrialError as error:
        raise InputError(str(error), f"mend {fitness.model.script}", fitness.model.where) from None


def place_study(plan: Plan, device: str, memory: str | None, share: Share | None = None) -> Placement:
    """What will live where in this study, or in the `share` of one of its workers. Reads headers only. Raises
    InputError where the model fits nowhere, or device or memory are none."""
    bank = SourceBank()
    for checkpoint in plan.checkpoints.values():
        bank.add(checkpoint)
    merge = planned(plan.space.uniform(), bank.open)
    step = planned_step(plan, merge)
    return place_models(merge, plan.space.models.dtype, plan.checkpoints, device, memory, share, step)


def _filled(bank: SourceBank, plan: Plan, observer: Observer) -> SourceBank:
    total = sum(info.bytes for c in plan.checkpoints.values() for info in c.tensors.values())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        observer.progress(f"loaded {size(done)} of {size(total)}", done / max(1, total))

    for checkpoint in plan.checkpoints.values():
        bank.load(bank.add(checkpoint).reference, progress=advance)
    return bank
