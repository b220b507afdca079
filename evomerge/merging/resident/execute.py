"""Runs one job of a plan: read its operands, apply its method, round once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import InputError, TrialError
from evomerge.merging.kernels.digest import NotFinite, Words
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.kernels.masks import Draw
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.jobs import COPY, MergeJob, Operand, Read
from evomerge.merging.resident.bank import SourceBank, torch_dtype
from evomerge.registry import METHODS, load

_PLAIN = Runner()


def execute(job: MergeJob, bank: SourceBank, device: torch.device | str = "cpu", runner: Runner = _PLAIN) -> Tensor:
    """The job's output tensor, in its output dtype, on `device`.

    Raises:
        TrialError: the result holds NaN or Inf.
        InputError: a source's weights are damaged, or the method cannot merge them.
    """
    result = torch.empty(job.shape, dtype=torch_dtype(job.out), device=device)
    write([job], [result], bank, runner)
    if result.is_floating_point() and not bool(result.isfinite().all()):
        raise not_finite(job)
    return result


def not_finite(job: MergeJob) -> TrialError:
    """The error of a job whose result holds NaN or Inf."""
    settings = ", ".join(f"{name} {value}" for name, value in job.parameters.items())
    return TrialError(f"{job.tensor} came out of {job.method} with NaN or Inf ({settings})")


def write(jobs: Sequence[MergeJob], outs: Sequence[Tensor], bank: SourceBank, runner: Runner = _PLAIN) -> None:
    """Merge into `outs`, tensors of the jobs' shapes whose dtypes hold the jobs' output dtypes. Jobs of one kernel take
    one call where they can (`Runner.write_all`). Raises InputError."""
    together: dict[tuple[str, Kernel], list[tuple[Blend, Tensor]]] = {}
    for job, out in zip(jobs, outs, strict=True):
        execution = Execution(bank, out.device, runner)
        if len(jobs) == 1:
            execution.write(job, out)
        elif (blend := execution.blend(job, out)) is not None:
            together.setdefault((job.work, blend.kernel), []).append((blend, out))
    for (work, _), pairs in together.items():
        runner.write_all([blend for blend, _ in pairs], [out for _, out in pairs], torch_dtype(work))


@torch.no_grad()
def carry_out(
    jobs: Sequence[MergeJob],
    slots: Sequence[Tensor],
    bank: SourceBank,
    runner: Runner,
    known: dict[Hashable, Words] | None = None,
) -> list[str]:
    """Merge into the memory of parameters; returns their lines of the digest. Tensors that are parts of one parameter,
    given together, take one call where they are alike.

    Args:
        known: the words of slots that came before; those of these are added.

    Raises:
        TrialError: one came out with NaN or Inf.
        InputError: a source's weights are damaged, or the method cannot merge them.
    """
    write(jobs, slots, bank, runner)
    key = jobs[0].tensor, *(job.out for job in jobs)
    words = None if known is None else known.get(key)
    try:
        if words is None:
            outs = [slot.to(torch_dtype(job.out)) for job, slot in zip(jobs, slots, strict=True)]
            words = Words.of([(job.tensor, out) for job, out in zip(jobs, outs, strict=True)])
            if known is not None and words.shared and all(out is slot for out, slot in zip(outs, slots, strict=True)):
                known[key] = words
        return words.records(runner)
    except NotFinite as error:
        raise not_finite(next(job for job in jobs if job.tensor == str(error))) from None


class Execution:
    """Runs the job of one output tensor, and the jobs that it reads from, each once."""

    def __init__(self, bank: SourceBank, device: torch.device, runner: Runner = _PLAIN) -> None:
        self._bank, self._device, self._runner = bank, device, runner
        self._done: dict[int, Tensor] = {}
        self._made: dict[Hashable, Tensor] = {}

    def write(self, job: MergeJob, out: Tensor) -> None:
        target = out if _takes(out, job) else None
        result = self._run(job, target)
        if result is not target:
            out.copy_(result)

    def blend(self, job: MergeJob, out: Tensor) -> Blend | None:
        """Write the job's merge into `out`; or give it, to be written there together with others, where all that it
        reads stays in memory anyway."""
        if job.method == COPY or not _takes(out, job):
            self.write(job, out)
            return None
        merged = self.merged(job, job.parameters)
        if isinstance(merged, Blend) and merged.reusable and self._bank.holds(merged.base, *merged.tensors):
            return merged
        result = self._result(job, merged, out)
        if result is not out:
            out.copy_(result)
        return None

    def fetch(self, operand: Operand) -> Tensor:
        """The operand's tensor: a stored one in the bank's place for it, a computed one on the device."""
        if isinstance(operand, Read):
            return self._bank.tensor(operand.model, operand.tensor)
        if isinstance(operand, MergeJob):
            if id(operand) not in self._done:
                self._done[id(operand)] = self._run(operand, None)
            return self._done[id(operand)]
        key = _key(operand)
        if key is None:
            return operand.build(self.fetch)
        if key not in self._made:  # a bank that keeps nothing would make it for each that asks
            self._made[key] = self._bank.remember(key, lambda: operand.build(self.fetch))
        return self._made[key]

    def _run(self, job: MergeJob, out: Tensor | None) -> Tensor:
        """The job's result, written into `out` unless it is None."""
        if job.method == COPY:
            return _copied([self.fetch(operand) for operand in job.inputs], job)
        return self._result(job, self.merged(job, job.parameters), out)

    def _result(self, job: MergeJob, merged: Blend | Tensor, out: Tensor | None) -> Tensor:
        work = torch_dtype(job.work)
        if isinstance(merged, Tensor):
            return merged.to(self._device).to(work).to(torch_dtype(job.out))
        if out is None:
            out = torch.empty(job.shape, dtype=torch_dtype(job.out), device=self._device)
        self._runner.write(merged, out, work)
        return out

    def merged(self, job: MergeJob, parameters: Mapping[str, Any]) -> Blend | Tensor:
        """The result of the job's method with `parameters` in place of the job's."""
        method = METHODS[job.method]
        arguments = {p.argument: parameters[p.name] for p in method.parameters}
        result: Blend | Tensor = load(method.function)(self.inputs(job), **arguments)
        return result

    def inputs(self, job: MergeJob) -> Inputs:
        """The tensors that the job merges, as its method takes them. Those that the bank holds are the same object for
        every candidate."""
        if METHODS[job.method].stochastic:
            return self._inputs(job)
        key = "inputs", job.base, job.inputs, job.work, self._device, self._runner
        inputs: Inputs | None = self._bank.recall(key)
        if inputs is None:
            inputs = self._inputs(job)
            if self._bank.holds(inputs.base, *inputs.tensors):
                self._bank.remember(key, lambda: inputs)
        return inputs

    def _inputs(self, job: MergeJob) -> Inputs:
        method, work = METHODS[job.method], torch_dtype(job.work)
        operands = [*([job.base] if job.base is not None else []), *job.inputs]
        tensors = [self._cast(self.fetch(operand), work) for operand in operands]
        keys: list[Hashable] = [_key(operand) for operand in operands]
        if job.base is None:
            keys.insert(0, "no base")
        return Inputs(
            tensors[1:] if job.base is not None else tensors,
            tensors[0] if job.base is not None else None,
            work=work,
            draw=Draw(job.seed, job.tensor) if method.stochastic else None,
            device=self._device,
            keys=keys,
            remember=self._bank.remember,
            run=lambda blend: self._runner.reduce(blend, work, self._device),
            kept=self._bank.kept if None not in keys else None,
            name=job.tensor,
        )

    def _cast(self, tensor: Tensor, work: torch.dtype) -> Tensor:
        """A stored tensor stays as it is unless the work's dtype is narrower."""
        return tensor if torch.promote_types(tensor.dtype, work) == work else tensor.to(work)


def _takes(out: Tensor, job: MergeJob) -> bool:
    """Whether the job's output can be written straight into `out`."""
    return out.is_contiguous() and out.dtype == torch_dtype(job.out)


def _key(operand: Operand) -> Hashable:
    """The key to remember facts of an operand under; None if it changes with the candidate, as a document's output."""
    if isinstance(operand, Read):
        return operand
    if isinstance(operand, MergeJob) or any(_key(part) is None for part in operand.operands):
        return None
    return operand.key


def _copied(tensors: list[Tensor], job: MergeJob) -> Tensor:
    """The first of the tensors, which are not of floating point: all models must agree on them."""
    if any(not torch.equal(tensors[0].cpu(), t.cpu()) for t in tensors[1:]):
        problem = f"{job.tensor} is {tensors[0].dtype} and differs between the models"
        raise InputError(problem, "such tensors are copied, so they must be equal")
    return tensors[0]
