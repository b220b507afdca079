"""Run one job of a plan: read its operands, apply its method, round once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from evomerge.errors import InputError, TrialError
from evomerge.merge.bank import SourceBank, torch_dtype
from evomerge.merge.jobs import COPY, Job, Operand, Read
from evomerge.merge.masks import Draw
from evomerge.registry import METHODS, load


def execute(job: Job, bank: SourceBank, device: torch.device | str = "cpu") -> Tensor:
    """The job's output tensor, in its output dtype, on `device`.

    Raises:
        TrialError: the result holds NaN or Inf.
        InputError: a source's weights are damaged.
    """
    done: dict[int, Tensor] = {}

    def fetch(operand: Operand) -> Tensor:
        if isinstance(operand, Read):
            return bank.tensor(operand.model, operand.tensor).to(device)
        if id(operand) not in done:
            done[id(operand)] = _run(operand, fetch)
        return done[id(operand)]

    result = _run(job, fetch)
    if result.is_floating_point() and not bool(result.isfinite().all()):
        raise TrialError(f"{job.tensor} came out of {job.method} with NaN or Inf ({_settings(job)})")
    return result


def _run(job: Job, fetch: Callable[[Operand], Tensor]) -> Tensor:
    if job.method == COPY:
        return _copied([fetch(operand) for operand in job.inputs], job)
    work, out = torch_dtype(job.work), torch_dtype(job.out)
    method = METHODS[job.method]
    arguments = {p.argument: job.parameters[p.name] for p in method.parameters}
    if method.stochastic:
        arguments["draw"] = Draw(job.seed, job.tensor)
    base = None if job.base is None else fetch(job.base).to(work)
    inputs = [fetch(operand).to(work) for operand in job.inputs]
    merged: Tensor = load(method.function)(inputs, base, **arguments)
    return merged.to(work).to(out)


def _copied(tensors: list[Tensor], job: Job) -> Tensor:
    """A tensor that is not of floating point cannot be merged: all models must agree on it."""
    if any(not torch.equal(tensors[0], t) for t in tensors[1:]):
        problem = f"{job.tensor} is {tensors[0].dtype} and differs between the models"
        raise InputError(problem, "such tensors are copied, so they must be equal")
    return tensors[0]


def _settings(job: Job) -> str:
    return ", ".join(f"{name} {value}" for name, value in job.parameters.items())
