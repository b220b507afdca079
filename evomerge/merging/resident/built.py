"""The resident state dict holds models that transformers does not build: each candidate's tensors are written into the
same memory, and the user's function builds a model from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError, Where
from evomerge.merging.kernels.compiled import Compiled
from evomerge.merging.kernels.digest import combined
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.jobs import MergeJob, MergePlan
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank, torch_dtype
from evomerge.merging.resident.execute import carry_out
from evomerge.merging.resident.materialize import as_it_is
from evomerge.recipe.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Build = Callable[[dict[str, Tensor], Path], Any]
"""``(state, folder) -> model``, of the merged tensors by name and the base checkpoint's folder."""


class BuiltModel:
    """The current candidate: its state dict, and the model built from it, which is a new object for each candidate."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.model: Any = None

    def eval(self) -> None:
        """Put the model into evaluation mode, if it has one."""
        if isinstance(self.model, torch.nn.Module):
            self.model.eval().requires_grad_(False)


class BuiltResident:
    """Holds a model of the user's own in a state dict that candidates overwrite, on one device (else like `Resident`).

    Attributes:
        model: always the same object; its `model` is the candidate's.
        planned: the plan of the candidate.
        tokenizer: the tokenizer that was passed in, or None.
    """

    def __init__(
        self,
        base: Checkpoint,
        bank: SourceBank,
        dtype: str,
        room: Mapping[str, int],
        build: Build,
        *,
        planned: MergePlan,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Allocate the tensors of `planned`, and build the base once, to check that it can be built.

        Raises:
            InputError: there are several devices.
            TrialError: the base cannot be built.
        """
        if len(room) > 1:
            problem = f"the model of a user's function is not cut between {' and '.join(room)}"
            raise InputError(problem, "give one device", Where("--device"))
        self.base, self.bank, self.tokenizer = bank.add(base), bank, tokenizer
        self.devices = next(iter(room))
        self.model, self.compiled = BuiltModel(), Compiled()
        self._build, self._runner = build, Runner(self.compiled)
        self._slots = {job.tensor: self._slot(job, None) for job in planned.jobs.values()}
        self.materialize(as_it_is(self.base.reference, dtype))

    def materialize(self, recipe: Recipe) -> str:
        """Make the model the one that `recipe` describes; returns its digest, as `Resident.materialize` does.

        Raises:
            TrialError: a tensor came out with NaN or Inf, or the model cannot be built.
            InputError: the recipe does not fit its checkpoints.
        """
        self.planned = plan(recipe, self.bank.open)
        jobs = self.planned.jobs
        self.compiled.collect()
        self.model.model = None  # before the next one takes memory
        self._slots = {name: self._slot(job, self._slots.get(name)) for name, job in jobs.items()}
        records = [carry_out([job], [self._slots[name]], self.bank, self._runner)[0] for name, job in jobs.items()]
        self.model.state = dict(self._slots)
        self.model.model = self._build(dict(self._slots), self.base.path)
        return combined(records)

    def _slot(self, job: MergeJob, last: Tensor | None) -> Tensor:
        """Memory for a job's output: `last`, the last candidate's, if it fits."""
        dtype = torch_dtype(job.out)
        if last is not None and tuple(last.shape) == job.shape and last.dtype == dtype:
            return last
        return torch.empty(job.shape, dtype=dtype, device=self.devices)
