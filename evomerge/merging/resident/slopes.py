"""Slopes of a loss along the parameters of a merge, pulled back from the gradients of the resident model.

A merged tensor is y = k(x), a kernel over a few numbers x (`inputs.Blend`), and these are x = g(p), functions of the
method's parameters. By the chain rule, tensor by tensor, in backward hooks:

    dL/dx = (dy/dx)^T dL/dy      the kernel once more under autograd, while the parameter's gradient is there (`add`)
    dL/dp = (dx/dp)^T dL/dx      the method once more with tensors as parameters, at the end (`slopes`)

For a weight this is the inner product of the gradient with the trimmed, masked, elected delta. Comparisons (which
elements are kept, which sign is elected) have no gradient: between two such decisions these are the exact slopes.
Parameters that only choose elements, such as density, have none.

A method that merges whole tensors is run under autograd, with tensors as parameters, for each part of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.layouts.layout import Slot
from evomerge.merging.kernels import bands
from evomerge.merging.kernels.inputs import Blend
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.core_space import Applied, applied
from evomerge.merging.plan.jobs import COPY, MergeJob
from evomerge.merging.resident.bank import SourceBank, torch_dtype
from evomerge.merging.resident.execute import Execution
from evomerge.recipe.bands import Bands
from evomerge.registry import METHODS

Add = Callable[[Tensor], None]

ParameterSlopes = dict[str, tuple[float | tuple[float, ...], ...]]
"""The slopes of one tensor's merge: parameter -> one for each of its sources, in the job's order, or the one of all.
Where a source has bands, a slope for each of them."""

_RUNNER = Runner()


class Pull:
    """Pulls gradients of one merged tensor back to the parameters of its job.

    Its memory is a few numbers: the tensors that a kept Blend reads are in memory anyway. What autograd keeps of a
    merge of whole tensors is dropped with each part of the gradient.
    """

    def __init__(self, job: MergeJob, bank: SourceBank, device: torch.device) -> None:
        self._job, self._bank, self._device = job, bank, device
        self._work = torch_dtype(job.work)
        self._blend: Blend | None = None
        self._total: Tensor | None = None  # d loss / d numbers of the Blend
        self._whole: Tensor | None = None  # d loss / d parameters, of merges of whole tensors
        values = {name: job.parameters[name] for name in METHODS[job.method].differentiable}
        numbers = [number for value in values.values() for number in (value if isinstance(value, tuple) else (value,))]
        self._leaf = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
        leaves = iter(self._leaf.unbind())
        self._parameters: dict[str, Any] = {
            name: tuple(next(leaves) for _ in value) if isinstance(value, tuple) else next(leaves)
            for name, value in values.items()
        }

    def add(self, gradient: Tensor) -> None:
        """Take in (part of) d loss / d parameter of the model, of the job's shape."""
        merged = self._blend or self._merge()
        if isinstance(merged, Tensor):
            [pulled] = torch.autograd.grad(merged, self._leaf, gradient.to(merged.device, merged.dtype))
            self._whole = pulled if self._whole is None else self._whole + pulled
            return
        pulled = _RUNNER.pull(merged, _floats(merged), gradient, self._work)
        self._total = pulled if self._total is None else self._total + pulled

    def slopes(self) -> ParameterSlopes:
        """The slopes of the job's parameters from all gradients since the last call; starts again from 0."""
        total, self._total = self._total, None
        whole, self._whole = self._whole, None
        gradient = torch.zeros_like(self._leaf) if whole is None else whole
        if total is not None:
            with torch.enable_grad():
                blend = self._blend or self._merge()
                assert isinstance(blend, Blend)
                numbers = _floats(blend)
            if numbers.requires_grad:
                [gradient] = torch.autograd.grad(numbers, self._leaf, total.cpu(), retain_graph=True)
        slopes = iter(gradient.tolist())
        return {
            name: tuple(next(slopes) for _ in (values if isinstance(values, tuple) else (values,)))
            for name, values in self._parameters.items()
        }

    def _merge(self) -> Blend | Tensor:
        """The job's Blend, whose numbers are functions of the parameters, or the merged tensor, which is one."""
        execution = Execution(self._bank, self._device)
        with torch.enable_grad():
            merged = execution.merged(self._job, {**self._job.parameters, **self._parameters})
        if isinstance(merged, Blend) and merged.reusable:
            self._blend = merged
        return merged


def _floats(blend: Blend) -> Tensor:
    """The numbers of a Blend [rows, columns], float64, as functions of the parameters."""
    rows = [torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in row]) for row in blend.floats]
    return torch.stack(rows)


class BandPull:
    """Pulls gradients of one merged matrix back to the numbers of its bands (`kernels.bands`), like `Pull`."""

    def __init__(self, job: MergeJob, bank: SourceBank, device: torch.device) -> None:
        self._job, self._bank, self._device = job, bank, device
        self._weight: tuple[float | Bands, ...] = job.parameters["weight"]
        self._total: list[Tensor] | None = None

    def add(self, gradient: Tensor) -> None:
        inputs = Execution(self._bank, self._device).inputs(self._job)
        pulled = bands.pull(inputs, self._weight, gradient.detach())
        before = self._total or [torch.zeros_like(part) for part in pulled]
        self._total = [a + b for a, b in zip(before, pulled, strict=True)]

    def slopes(self) -> ParameterSlopes:
        total, self._total = self._total, None
        counts = [len(value.values) if isinstance(value, Bands) else 1 for value in self._weight]
        parts = total or [torch.zeros(count, dtype=torch.float64) for count in counts]
        listed = [tuple(part.tolist()) for part in parts]
        pairs = zip(listed, self._weight, strict=True)
        return {"weight": tuple(slopes if isinstance(value, Bands) else slopes[0] for slopes, value in pairs)}


class CorePull:
    """Pulls gradients of a matrix that was merged in Core Space back to the parameters of the merge of the cores, like
    `Pull`: W + U C V^T has the slope U^T (dL/dW) V along C."""

    def __init__(self, merged: Applied, bank: SourceBank, device: torch.device) -> None:
        self._merged, self._bank, self._device = merged, bank, device
        self._pull = Pull(merged.core, bank, device)

    def add(self, gradient: Tensor) -> None:
        space = self._merged.changes.space(Execution(self._bank, self._device).fetch)
        u, v = (side.to(gradient.device) for side in (space.u, space.v))
        self._pull.add(u.T @ gradient.float() @ v.T)

    def slopes(self) -> ParameterSlopes:
        return self._pull.slopes()


def _pull(job: MergeJob, bank: SourceBank, device: torch.device) -> Pull | BandPull | CorePull:
    merged = applied(job)
    if merged is not None:
        return CorePull(merged, bank, device)
    return BandPull(job, bank, device) if job.banded else Pull(job, bank, device)


class Pulls:
    """Pulls the gradients of a whole model back to the parameters of its merges."""

    def __init__(self, jobs: Mapping[str, MergeJob], slots: Mapping[str, Slot], bank: SourceBank) -> None:
        """`slots`: the place of every output tensor. Where two share one (a head that is the embeddings), it holds the
        later job's result."""
        last_written = {slot.tensor.data_ptr(): name for name, slot in slots.items() if slot.tensor.numel()}
        self._pulls: dict[str, Pull | BandPull | CorePull] = {}
        self._slots: dict[str, Slot] = {}
        for name in last_written.values():
            job, tensor = _origin(jobs[name]), slots[name].tensor
            merged = applied(job)
            method = job.method if merged is None else merged.core.method
            if method != COPY and METHODS[method].differentiable and tensor.is_floating_point():
                self._pulls[name], self._slots[name] = _pull(job, bank, tensor.device), slots[name]

    def slopes(self) -> dict[str, ParameterSlopes]:
        """Tensor -> the slopes of its merge's parameters, from all that was backpropagated since the last call."""
        return {name: pull.slopes() for name, pull in self._pulls.items()}

    @contextmanager
    def open(self, tensors: Collection[str] | None = None) -> Iterator[None]:
        """Pull back the gradients of all backward passes through the model inside this context: each as soon as it is
        complete, after which it is dropped. `tensors`: the names of the tensors to pull back; None: all."""
        homes: dict[int, tuple[Tensor, list[tuple[Slot, Add]]]] = {}
        for name, slot in self._slots.items():
            if tensors is None or name in tensors:
                homes.setdefault(id(slot.home), (slot.home, []))[1].append((slot, self._pulls[name].add))
        handles = []
        try:
            for home, takers in homes.values():
                home.requires_grad_(True)
                handles.append(home.register_post_accumulate_grad_hook(_hook(takers)))  # type: ignore[no-untyped-call]
            yield
        finally:
            for handle in handles:
                handle.remove()
            for home, _ in homes.values():
                home.requires_grad_(False)
                home.grad = None


def _origin(job: MergeJob) -> MergeJob:
    """The merge behind documents that only stack the outputs of others."""
    while job.method == "passthrough" and isinstance(job.inputs[0], MergeJob) and job.parameters["scale"] == (1.0,):
        job = job.inputs[0]
    return job


def _hook(takers: Sequence[tuple[Slot, Add]]) -> Add:
    """A hook that hands each slot's part of a parameter's gradient on, and drops it."""

    def take(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            for slot, add in takers:
                add(slot.of(gradient))

    return take
