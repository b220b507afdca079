"""Layer stacks without copies: a parameter that a recipe takes from a source as it is, or scaled, is linked to the
source's tensor in the bank. So a stack of any depth, with layers that stand in it several times, costs no memory.

For each parameter of a stack, the first of these that can be:

1. Linked: all tensors that it consists of are one source's, unscaled, and lie in memory as the model has them.
2. Written, as every other merge is, into memory of the resident model that is free.
3. Lent: made of the source's tensors each time that its layer runs (scaled; or streamed, from the host's memory or a
   file, through a device that is too small for all layers), and dropped when it has run.
4. Written into new memory: what is merged, or outside of the layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge.checkpoints.headers import SIZES
from evomerge.checkpoints.layouts.layout import Layout, Slot, layout
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.jobs import MergeJob, MergePlan, Read
from evomerge.merging.plan.models import stage_recipe
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank, torch_dtype
from evomerge.merging.resident.execute import execute, write
from evomerge.merging.resident.sharding import skeleton
from evomerge.merging.resident.skeleton import Home, Make, Memory, Skeleton, view_of
from evomerge.recipe.recipe import Recipe

_PASSED = "passthrough"


def is_stack(recipe: Recipe) -> bool:
    """Whether the recipe stacks layers of models as they are."""
    output = recipe.output
    return output.method == _PASSED and not output.whole and not output.modules


def origin(job: MergeJob) -> tuple[Read, float] | None:
    """The stored tensor that a job's output is, and the factor that it is scaled by; None where it is merged, cast, or
    scaled twice (which rounds twice)."""
    scale = 1.0
    while job.method == _PASSED and job.work == job.out:
        factor, operand = float(job.parameters["scale"][0]), job.inputs[0]
        if factor != 1.0 and scale != 1.0:
            return None
        scale *= factor
        if isinstance(operand, Read):
            return operand, scale
        if not isinstance(operand, MergeJob):
            return None
        job = operand
    return None


def assign(
    skeleton: Skeleton,
    place: Layout,
    jobs: Mapping[str, MergeJob],
    bank: SourceBank,
    memory: Memory,
    device: str,
    runner: Runner,
) -> set[str]:
    """Gives every parameter of a model what it is for a candidate. Returns the names of the tensors that need not be
    written, as they are linked or lent.

    Args:
        jobs: of a stack; none: all parameters are written.
    """
    unwritten, lent = set[str](), dict[int, list[tuple[Home, Make]]]()
    elsewhere: list[tuple[Home, list[MergeJob]]] = []
    memory.free()
    for home, names in zip(skeleton.homes, skeleton.stored_in(place), strict=True):
        wanted = [jobs[name] for name in names if name in jobs]
        origins = [found for job in wanted if (found := origin(job)) is not None]
        if not wanted or len(origins) < len(wanted):
            home.give(memory.grown(home))
        elif (tensor := _linked(home, wanted, origins, place.slots, bank, device)) is not None:
            home.give(tensor)
            unwritten.update(job.tensor for job in wanted)
        else:
            elsewhere.append((home, wanted))  # what must be written comes first
    for home, wanted in elsewhere:
        if home.layer is None or memory.has(home):
            home.give(memory.grown(home))
            continue
        home.give(torch.zeros(1, dtype=home.dtype, device=device).expand(home.shape))  # takes no memory
        lent.setdefault(home.layer, []).append((home, _made(home, wanted, place.slots, bank, device, runner)))
        unwritten.update(job.tensor for job in wanted)
    skeleton.lend(lent)
    return unwritten


def _linked(
    home: Home,
    jobs: Sequence[MergeJob],
    origins: Sequence[tuple[Read, float]],
    slots: Mapping[str, Slot],
    bank: SourceBank,
    device: str,
) -> Tensor | None:
    """The memory of a source that holds the jobs' tensors just as the parameter has them."""
    parts: list[tuple[Slot, Tensor]] = []
    for job, (read, scale) in zip(jobs, origins, strict=True):
        if scale != 1.0 or torch_dtype(job.out) != home.dtype:
            return None
        tensor = bank.kept_tensor(read.model, read.tensor)
        if tensor is None or tensor.dtype != home.dtype or tensor.device != torch.device(device):
            return None
        parts.append((slots[job.tensor], tensor))
    first, tensor = parts[0]
    start = tensor.storage_offset() - (first.tensor.storage_offset() - first.home.storage_offset())
    if start < 0:
        return None
    stride = first.home.stride()
    if (start + first.home.numel()) * tensor.element_size() > tensor.untyped_storage().nbytes():
        return None
    whole = tensor.as_strided(home.shape, stride, start)
    same = all(t.shape == slot.tensor.shape and _is(t, view_of(whole, slot)) for slot, t in parts)
    filled = sum(t.numel() for _, t in parts) >= first.home.numel()
    return whole if same and filled else None


def _is(tensor: Tensor, view: Tensor) -> bool:
    """Whether two tensors are the same memory."""
    return tensor.data_ptr() == view.data_ptr() and tensor.stride() == view.stride()


def _made(
    home: Home,
    jobs: Sequence[MergeJob],
    slots: Mapping[str, Slot],
    bank: SourceBank,
    device: str,
    runner: Runner,
) -> Make:
    """Makes a lent parameter: the bits that its merge would write."""

    def make() -> Tensor:
        tensor = torch.empty(home.shape, dtype=home.dtype, device=device)
        with torch.no_grad():
            write(jobs, [view_of(tensor, slots[job.tensor]) for job in jobs], bank, runner)
        return tensor

    return make


def prepare_stacks(bank: SourceBank, recipe: Recipe) -> None:
    """Has the bank keep what stacks like this one are linked to. Call it before tensors are read; a recipe that is no
    stack changes nothing."""
    if is_stack(recipe):
        hold_stages(bank, recipe)
        lay_out(bank)


def hold_stages(bank: SourceBank, recipe: Recipe) -> int:
    """Has the bank keep the merges that a stack takes layers from, so that they are not merged again for each stack.
    Returns their bytes. Nothing is merged yet."""
    taken = {i.model for slice_ in recipe.output.all_slices for i in slice_.inputs}
    n_bytes = 0
    for number, document in enumerate(recipe.documents[:-1]):
        if document.name in taken:
            stage = stage_recipe(recipe, number)
            planned = plan(stage, bank.open)
            n_bytes += sum(math.prod(job.shape) * SIZES[job.out] for job in planned.jobs.values())

            def make(name: str, planned: MergePlan = planned) -> Tensor:
                return execute(planned.jobs[name], bank)

            bank.hold(stage, planned, make)
    return n_bytes


def lay_out(bank: SourceBank) -> None:
    """Has the bank put tensors that are fused when they are loaded (the experts of a layer) side by side as the model
    has them, so that they can be linked. Call it before they are read."""
    models = {c.reference: (c.config, {name: info.shape for name, info in c.tensors.items()}) for c in bank.checkpoints}
    models.update({key: (planned.config, planned.shapes) for key, planned in bank.held.items()})
    for ref, (config, shapes) in models.items():
        try:
            model = skeleton(config)
        except Exception:  # a configuration can make transformers fail with anything; loading the model says so
            continue
        fused: dict[int, dict[str, Slot]] = {}
        for name, slot in layout(model, shapes).slots.items():
            if slot.tensor is not slot.home:
                fused.setdefault(id(slot.home), {})[name] = slot
        for slots in fused.values():
            if all(slot.tensor.is_contiguous() for slot in slots.values()):
                whole = next(iter(slots.values())).home
                offsets = {n: int(s.tensor.storage_offset() - s.home.storage_offset()) for n, s in slots.items()}
                bank.arrange(ref, offsets, whole.numel())
