"""One resident model, the sources beside it, the tasks built once: a recipe in, scores out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Mapping

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.preflight import check_configured
from evomerge.errors import InputError, TrialError
from evomerge.evaluator.core_space import prepare_spaces, space_bytes, unread
from evomerge.evaluator.device import place_models
from evomerge.evaluator.evaluation import Evaluation
from evomerge.evaluator.models import OpenModels
from evomerge.evaluator.progress import Progress
from evomerge.evaluator.serving import (
    asks_engine,
    engine_bytes,
    engine_facts,
    engine_memory,
    model_bytes,
    servable,
    start_engine,
)
from evomerge.evaluator.shares import Share
from evomerge.evaluator.step_memory import StepMemory, planned_step
from evomerge.files.objects import FitnessSpec, Measure
from evomerge.merging.kernels.compiled import Compiled
from evomerge.merging.kernels.factors import are_kept, factor_bytes, factors
from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.plan.jobs import MergeJob, MergePlan
from evomerge.merging.plan.plan import plan as plan_merge
from evomerge.merging.plan.tokenizers import OutputTokenizer, output_tokenizer
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.building import check_buildable
from evomerge.merging.resident.built import BuiltResident
from evomerge.merging.resident.execute import Execution
from evomerge.merging.resident.factor_cache import FactorCache, default_folder
from evomerge.merging.resident.materialize import Resident
from evomerge.merging.resident.placement import CPU, Placement, size, tensor_key
from evomerge.merging.resident.rehearsal import rehearse
from evomerge.merging.resident.slopes import ParameterSlopes, Pulls
from evomerge.merging.resident.stacks import hold_stages, prepare_stacks
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.candidate import Candidate
from evomerge.scoring.python.functions import ModelBuilder
from evomerge.scoring.serving.serving import Serving
from evomerge.scoring.suite import Suite
from evomerge.types import SplitName

_KEPT = 64 << 20
"""Bytes of the latest candidates that are kept: nothing in any plan of memory, and a generation of small models."""

_SILENT = 1.0
"""Seconds that decompositions may take without a report."""


class Evaluator:
    """Materializes recipes in a resident model and scores it. Everything that a candidate needs is loaded once."""

    def __init__(self, resident: Resident | BuiltResident, suite: Suite, memory: StepMemory | None = None) -> None:
        """`memory`: of a gradient step; None where no candidate is differentiated."""
        self.resident, self.suite = resident, suite
        self._holds: tuple[str, str] | None = None  # the id of the recipe that the model is, and its digest
        self._pulls: Pulls | None = None
        self._memory = memory

    @classmethod
    def load(cls, models: OpenModels, fitness: FitnessSpec, placement: Placement, progress: Progress) -> Evaluator:
        """Loads sources and tasks. Raises InputError, for NaN in a source among other things."""
        for line in models.tensor_notes:
            progress.note(line)
        for line in models.quantized:
            progress.note(f"quantized: {line}")
        for line in models.tokens.dropped:
            progress.warn(line)
        for line in models.tokens.filled:
            progress.phase(line)
        for topic, line in placement.facts().items():
            progress.note(f"{topic}: {line}")
        for topic, line in decompositions(models).items():
            progress.note(f"{topic}: {line}")
        bank = _opened(models, placement, FactorCache())
        stack = models.space.stack()
        if stack is not None:
            prepare_stacks(bank, stack)
        outline = models.space.outline()
        merge = plan_merge(outline, bank.open)
        tokenizer = output_tokenizer(outline.output, merge)
        check_loadable(fitness, models.base, merge, tokenizer)
        varies = "candidates have layers of their own, and vLLM serves one structure" if stack is not None else ""
        candidates = servable(
            merge, models.checkpoints.values(), tokenizer, models.space.models.dtype, placement, varies
        )
        progress.phase("loading the base and its sources")
        compiled = Compiled()
        if stack is None and fitness.model is None:
            typical = plan_merge(models.space.recipe(models.space.start), bank.open)
            rehearse(typical, models.checkpoints.values(), next(iter(placement.room)), compiled)
        _fill(bank, models, progress)
        if models.space.spec.core:
            prepare_spaces(_typical(models), bank, progress)
        if any(models.space.factored()):
            decompose(plan_merge(models.space.recipe(models.space.start), bank.open), bank, progress)
        dtype = models.space.models.dtype
        resident = resident_model(fitness, models.base, bank, dtype, placement.room, merge, tokenizer, compiled)
        if isinstance(resident, Resident):
            resident.most_kept = _KEPT
        if compiled.is_busy:
            progress.phase("compiling the merge's kernels")
            compiled.wait()
        progress.phase("building the tasks")
        serving = Serving(candidates, engine_memory(candidates, placement))
        suite = Suite.build(fitness, resident.model, resident.tokenizer, serving=serving)
        for line in suite.doubts():
            progress.warn(line)
        evaluator = cls(resident, suite, StepMemory.of(models, merge, min(placement.reserves.values())))
        tried = [models.space.parent(models.space.models.base), outline]
        start_engine(suite, resident.model, evaluator.materialized, tried, "search", progress)
        return evaluator

    def close(self) -> None:
        """Ends what runs beside this process."""
        self.suite.close()

    def evaluate(
        self,
        recipe: Recipe,
        split: SplitName,
        on_slice: Callable[[str], None],
        items: Mapping[str, frozenset[str]] | None = None,
    ) -> Evaluation:
        """Materializes `recipe` in place and scores it.

        Args:
            recipe: of the candidate.
            split: whose items are scored.
            on_slice: is called with the name of each slice before it is scored.
            items: slice -> names of the items to score; None: all of the split's.

        Raises:
            TrialError: the candidate cannot be merged or scored.
        """
        started = time.perf_counter()
        digest = self.materialized(recipe)
        merged = time.perf_counter()
        try:
            scores = self.suite.score(split, on_slice, items)
        except TrialError:
            self._holds = None  # the code that failed may have changed the weights
            if isinstance(self.resident, Resident):
                self.resident.distrust()
            raise
        ended = time.perf_counter()
        return Evaluation(scores, digest, {"materialize": merged - started, "score": ended - merged})

    def proxy_loss(
        self,
        recipe: Recipe,
        name: str,
        items: frozenset[str],
        checked: frozenset[str],
        tensors: Collection[str],
        teacher: Recipe | None = None,
    ) -> tuple[float, float, dict[str, ParameterSlopes]]:
        """The proxy loss of a slice on two sets of items, and the slopes of the first one.

        Args:
            recipe: of the candidate.
            name: of the slice.
            items: on which the slopes are taken.
            checked: other items, on which only the loss is computed.
            tensors: merged tensors whose slopes are wanted, by the parameters of their merge; none: losses only.
            teacher: the source whose answers are the right ones, where the slice's are written. It writes them the
                first time that they are needed.

        Raises:
            TrialError: the candidate cannot be merged or scored.
        """
        if teacher is not None and self.suite.lacks_answers(name):
            self.materialized(teacher)
            self.suite.learn(name)
        self.materialized(recipe)
        assert isinstance(self.resident, Resident), "only language models have proxy losses"
        if not tensors:
            return self.suite.proxy_loss(name, items), self.suite.proxy_loss(name, checked), {}
        if self._pulls is None:
            self._pulls = self.resident.pulls()
        try:
            with self._pulls.open(tensors):
                loss = self.suite.proxy_loss(name, items, backward=True, checkpointing=self._is_tight(name, items))
        except TrialError:
            self._pulls = None  # it holds a part of the slopes
            raise
        slopes = self._pulls.slopes()
        # A head that is stored besides the embeddings that it is has none: what moves the model is written last.
        wanted = {tensor: slopes[tensor] for tensor in tensors if tensor in slopes}
        return loss, self.suite.proxy_loss(name, checked), wanted

    def _is_tight(self, name: str, items: frozenset[str]) -> bool:
        """Whether a backward pass on these items would take more memory than is kept for it."""
        loss = self.suite.slices[name].proxy_loss
        return self._memory is not None and loss is not None and self._memory.is_tight(loss.largest(items))

    def materialized(self, recipe: Recipe) -> str:
        """The digest of the model, which becomes `recipe` unless it still is."""
        if self._holds is None or self._holds[0] != recipe.id:
            self._holds = self._pulls = None
            self._holds = recipe.id, self.resident.materialize(recipe)
            if self.suite.takers:
                planned, device = self.resident.planned, self.resident.devices.partition(",")[0]
                size: dict[Measure, int] = {"layers": planned.stack.layers, "parameters": planned.parameters}
                self.suite.become(Candidate(recipe, self._holds[1], device, size))
        return self._holds[1]


def check_candidates(models: OpenModels, fitness: FitnessSpec) -> None:
    """Checks the tokenizer and the model that a search would load, from files and headers. Raises InputError."""
    outline = models.space.outline()
    merge = plan_merge(outline, _opened(models).open)
    check_loadable(fitness, models.base, merge, output_tokenizer(outline.output, merge))


def check_loadable(fitness: FitnessSpec, base: Checkpoint, planned: MergePlan, tokenizer: OutputTokenizer) -> None:
    """Checks, before a weight is read, that transformers can load the tokenizer and build the model. Raises
    InputError."""
    if fitness.model is None:
        check_configured(base)
        check_buildable(base, planned)
    if fitness.model is None or not tokenizer.vocabulary.missing:
        tokenizer.load()


def resident_model(
    fitness: FitnessSpec,
    base: Checkpoint,
    bank: SourceBank,
    dtype: str,
    room: Mapping[str, int],
    planned: MergePlan,
    tokenizer: OutputTokenizer,
    compiled: Compiled | None = None,
) -> Resident | BuiltResident:
    """Builds the model in memory that candidates are written into: transformers' language model, or the one that the
    fitness file's `model` builds. `compiled`: kernels for the former. InputError where it cannot be built."""
    if fitness.model is None:
        check_configured(base)
        return Resident(base, bank, dtype, room, planned=planned, tokenizer=tokenizer.load(), compiled=compiled)
    given = None if tokenizer.vocabulary.missing else tokenizer.load()
    try:
        return BuiltResident(base, bank, dtype, room, ModelBuilder(fitness.model), planned=planned, tokenizer=given)
    except TrialError as error:
        raise InputError(str(error), f"mend {fitness.model.script}", fitness.model.where) from None


def place_candidates(
    models: OpenModels, fitness: FitnessSpec, device: str, memory: str | None, share: Share | None = None
) -> Placement:
    """Plans where the resident model, base and sources live, from headers only.

    Args:
        models: base, sources, and the space of their merges.
        fitness: of which the batch size counts, where a gradient step needs memory.
        device: as `device.choose_devices` takes it.
        memory: as `device.parse_memory` takes it.
        share: the part of the machine that this is for, where several workers share it.

    Raises:
        InputError: the model fits nowhere, or device or memory are none.
    """
    merge = _largest(models)
    step = planned_step(models, fitness.batch_size, merge)
    taken = _factor_bytes(models) + _held_bytes(models)
    dtype = models.space.models.dtype
    engine = engine_bytes(model_bytes(merge, dtype)) if asks_engine(fitness) else 0
    without: Collection[Hashable] = ()
    if models.space.spec.core:
        typical = _typical(models)
        taken, without = taken + space_bytes(typical), unread(typical, models.checkpoints.values())
    return place_models(merge, dtype, models.checkpoints, device, memory, share, step, taken, engine, without)


def _typical(models: OpenModels) -> MergePlan:
    """The plan of the candidate that a search begins with."""
    return plan_merge(models.space.recipe(models.space.start), _opened(models).open)


def _largest(models: OpenModels) -> MergePlan:
    """The plan of a candidate that takes as much memory as any."""
    bank, space = _opened(models), models.space
    try:
        return plan_merge(space.largest(), bank.open)
    except InputError:  # layers of several kinds, which cannot stand in any order
        return plan_merge(space.outline(), bank.open)


def decompositions(models: OpenModels) -> dict[str, str]:
    """What merges by singular directions need, as a fact to print: how many deltas are decomposed, what that takes, and
    where they are kept."""
    count = sum(1 for _ in models.space.factored())
    if not count:
        return {}
    taken = size(_factor_bytes(models))
    return {
        "decompositions": f"{count} of deltas, {taken} in memory; those are computed that are not in {default_folder()}"
    }


def engine_needs(models: OpenModels, fitness: FitnessSpec, device: str) -> dict[str, str]:
    """What an engine that slices ask for takes, as a fact to print."""
    if not asks_engine(fitness):
        return {}
    return engine_facts(model_bytes(_largest(models), models.space.models.dtype), device)


def decompose(planned: MergePlan, bank: SourceBank, progress: Progress) -> None:
    """Decomposes the deltas that a merge by singular directions needs, so that no candidate waits for it. Those of
    stacks wait for the first candidate."""

    def inputs(job: MergeJob) -> Inputs:
        return Execution(bank, torch.device(CPU)).inputs(job)

    matrices = [job for job in planned.jobs.values() if len(job.shape) == 2]
    wanted = [(job, i, parts) for job in matrices for i, parts in job.decomposed.items()]
    new = sum(not are_kept(inputs(job), i, parts) for job, i, parts in wanted)
    if wanted:
        progress.phase(f"decomposing deltas ({new} of {len(wanted)} are new)")
    started = time.monotonic()
    for done, (job, i, parts) in enumerate(wanted, start=1):
        factors(inputs(job), i, parts)
        if time.monotonic() - started > _SILENT:
            progress.progress(f"decomposed {done} of {len(wanted)} deltas", done / len(wanted))


def _factor_bytes(models: OpenModels) -> int:
    return sum(factor_bytes(shape, count) for shape, count in models.space.factored())


def _held_bytes(models: OpenModels) -> int:
    """The bytes of the merges that stacks take layers from."""
    stack = models.space.stack()
    return 0 if stack is None else hold_stages(_opened(models), stack)


def _opened(models: OpenModels, placement: Placement | None = None, kept: FactorCache | None = None) -> SourceBank:
    """A bank of all checkpoints, none of them loaded."""
    bank = SourceBank(placement=placement, kept=kept)
    for checkpoint in models.checkpoints.values():
        bank.add(checkpoint)
    return bank


def _fill(bank: SourceBank, models: OpenModels, progress: Progress) -> None:
    """Load all checkpoints."""
    total = sum(info.bytes for c in models.checkpoints.values() for info in c.tensors.values())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress.progress(f"loaded {size(done)} of {size(total)}", done / max(1, total))

    without = unread(_typical(models), models.checkpoints.values()) if models.space.spec.core else frozenset()
    for checkpoint in models.checkpoints.values():
        names = {name for name in checkpoint.tensors if tensor_key(checkpoint, name) not in without}
        bank.load(checkpoint.reference, progress=advance, names=names)
