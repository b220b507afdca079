"""How a loss changes with the numbers that a tensor was merged with: the gradient of each parameter of the resident
model, pulled back through its merge in backward hooks, tensor by tensor.

The merge of a tensor is a kernel over a few numbers (`inputs.Blend`), and these are functions of the method's
parameters. So d loss / d weight is the inner product of the parameter's gradient with the trimmed, masked, elected
delta (and for what else is smooth likewise), found by running the same kernel under autograd. What a comparison decides
(which elements are kept, which sign is elected) is held as it is: between two such decisions these are the exact
slopes. Density, and what else only chooses elements, has none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from evomerge.merging.kernels.inputs import Blend
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.jobs import COPY, Job
from evomerge.merging.resident.bank import SourceBank, torch_dtype
from evomerge.merging.resident.execute import Execution
from evomerge.registry import METHODS

ParameterSlopes = dict[str, tuple[float, ...]]
"""Of one tensor's merge: parameter -> a slope for each of its sources, in the job's order, or the one of the whole."""

_RUNNER = Runner()


class Pull:
    """One job's parameters and what has been pulled back to them. Its memory is a few numbers: of what the merge is
    made of it keeps only tensors that are there anyway."""

    def __init__(self, job: Job, bank: SourceBank, device: torch.device) -> None:
        self._job, self._bank, self._device = job, bank, device
        self._work = torch_dtype(job.work)
        self._smooth = METHODS[job.method].differentiable
        self._blend: Blend | None = None
        self._total: Tensor | None = None
        sizes = {name: len(values) for name in self._smooth if isinstance(values := job.parameters[name], tuple)}
        given = [
            v for name in self._smooth for v in (job.parameters[name] if name in sizes else [job.parameters[name]])
        ]
        self._values = torch.tensor(given, dtype=torch.float64, requires_grad=True)
        pieces = iter(self._values.unbind())
        self._given: dict[str, Any] = {
            name: tuple(next(pieces) for _ in range(sizes[name])) if name in sizes else next(pieces)
            for name in self._smooth
        }

    def add(self, gradient: Tensor) -> None:
        """Take in (part of) d loss / d parameter of the model, of the job's shape."""
        blend = self._blend or self._made()
        found = _RUNNER.pull(blend, _floats(blend), gradient, self._work)
        self._total = found if self._total is None else self._total + found

    def slopes(self) -> ParameterSlopes:
        """What came in so far, as slopes of the job's parameters; starts again from nothing."""
        total, self._total = self._total, None
        found = torch.zeros_like(self._values)
        if total is not None:
            with torch.enable_grad():
                numbers = _floats(self._blend or self._made())
            if numbers.requires_grad:
                [found] = torch.autograd.grad(numbers, self._values, total.cpu(), allow_unused=False, retain_graph=True)
        pieces = iter(found.tolist())
        return {
            name: tuple(next(pieces) for _ in (values if isinstance(values, tuple) else (values,)))
            for name, values in self._given.items()
        }

    def _made(self) -> Blend:
        execution = Execution(self._bank, self._device)
        with torch.enable_grad():
            blend = execution.merged(self._job, {**self._job.parameters, **self._given})
        assert isinstance(blend, Blend), f"{self._job.method} declares slopes and merges whole tensors"
        if blend.kernel.function != "masked":  # its masks are made for it
            self._blend = blend
        return blend


def _floats(blend: Blend) -> Tensor:
    """The numbers of a blend [rows, columns], float64, as functions of the parameters."""
    rows = [torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in row]) for row in blend.floats]
    return torch.stack(rows)


class Pulls:
    """The merges of a whole model, waiting for gradients."""

    def __init__(self, jobs: Mapping[str, Job], slots: Mapping[str, Tensor], bank: SourceBank) -> None:
        """`slots`: the parameter of every output tensor. Where two share one (a head that is the embeddings), it is
        what the later job made it."""
        written = {slot.data_ptr(): name for name, slot in slots.items() if slot.numel()}
        self._pulls: dict[str, Pull] = {}
        self._slots: dict[str, Tensor] = {}
        for name in written.values():
            job = _origin(jobs[name])
            if job.method != COPY and METHODS[job.method].differentiable and slots[name].is_floating_point():
                self._pulls[name], self._slots[name] = Pull(job, bank, slots[name].device), slots[name]

    def slopes(self) -> dict[str, ParameterSlopes]:
        """Tensor -> the slopes of its merge's parameters, of all that was backpropagated since the last call."""
        return {name: pull.slopes() for name, pull in self._pulls.items()}

    @contextmanager
    def open(self, tensors: Collection[str] | None = None) -> Iterator[None]:
        """While this is open, backward passes through the model end here: a parameter's gradient is pulled back as soon
        as it is complete, and dropped. `tensors`: whose alone are wanted."""
        wanted = {n: slot for n, slot in self._slots.items() if tensors is None or n in tensors}
        handles = []
        try:
            for name, slot in wanted.items():
                slot.requires_grad_(True)
                handles.append(slot.register_post_accumulate_grad_hook(_taking(self._pulls[name].add)))  # type: ignore[no-untyped-call]
            yield
        finally:
            for handle in handles:
                handle.remove()
            for slot in wanted.values():
                slot.requires_grad_(False)
                slot.grad = None


def _origin(job: Job) -> Job:
    """Where documents only stack what others merged, the merge behind it."""
    while job.method == "passthrough" and isinstance(job.inputs[0], Job) and job.parameters["scale"] == (1.0,):
        job = job.inputs[0]
    return job


def _taking(add: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    def take(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            add(gradient)

    return take
