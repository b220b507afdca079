"""The steps by which an adapter changes one tensor of its base.

Formulas: W + alpha/r B A (Hu et al. 2021, section 4.1), alpha/sqrt(r) for rank-stabilized LoRA (Kalajdzievski 2023),
and DoRA's magnitude m (W + s B A) / |W + s B A| (Liu et al. 2024, equation 5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from evomerge.checkpoints.headers import SIZES, TensorInfo
from evomerge.checkpoints.lora_names import Part
from evomerge.checkpoints.read import read_tensor
from evomerge.errors import Where

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Step(Protocol):
    """One change of a weight. `apply` does not write into `weight`."""

    def apply(self, weight: Tensor, where: Where | None) -> Tensor: ...


@dataclass(frozen=True)
class LowRank:
    """Adds scale * (B A), A [rank, inputs], B [outputs, rank], to a weight [outputs, inputs], or [inputs, outputs] if
    it is `transposed`. `magnitude` [outputs]: DoRA's m."""

    a: TensorInfo
    b: TensorInfo
    scale: float
    transposed: bool
    magnitude: TensorInfo | None = None

    def apply(self, weight: Tensor, where: Where | None) -> Tensor:
        a, b = (read_tensor(info, where).to(weight.dtype) for info in (self.a, self.b))
        changed = (a.T @ b.T if self.transposed else b @ a).mul_(self.scale).add_(weight)
        if self.magnitude is None:
            return changed
        inputs, outputs = (0, 1) if self.transposed else (1, 0)
        shape = [1, 1]
        shape[outputs] = -1
        magnitude = read_tensor(self.magnitude, where).to(weight.dtype).reshape(shape)
        return changed.mul_(magnitude / changed.norm(dim=inputs, keepdim=True))


@dataclass(frozen=True)
class ExpertsLowRank:
    """Adds scale * (B A) of each expert to a weight [experts, rows, columns], or to a part of it (PEFT's
    `target_parameters`, `ParamWrapper.get_delta_weight`).

    Attributes:
        a, b: [experts * rank, inputs], the experts one after the other, and [outputs, rank * experts], of each rank all
            experts.
        experts: how many there are.
        outputs_first: whether the rows are the outputs, and not the inputs.
        part: what the weight is of all experts.
    """

    a: TensorInfo
    b: TensorInfo
    scale: float
    experts: int
    outputs_first: bool
    part: Part

    def apply(self, weight: Tensor, where: Where | None) -> Tensor:
        import torch

        # 1. Of this part are read: its experts' rows of A, and of B those of its own rows, if these are the outputs.
        (first, end), expert = self.part.rows, self.part.expert
        chosen = range(self.experts) if expert is None else range(expert, expert + 1)
        rank = self.a.shape[0] // self.experts
        a = _rows(self.a, chosen.start * rank, chosen.stop * rank)
        b = _rows(self.b, first, end) if self.outputs_first else self.b
        inputs = read_tensor(a, where).to(weight.dtype).reshape(len(chosen), rank, -1)
        outputs = read_tensor(b, where).to(weight.dtype).reshape(b.shape[0], rank, self.experts)
        if not self.outputs_first:
            inputs = inputs[..., first:end]
        # 2. B A, expert by expert
        result = torch.empty_like(weight)
        for row, (i, of_expert) in enumerate(zip(chosen, result if expert is None else result[None], strict=True)):
            change = (outputs[..., i] @ inputs[row]).mul_(self.scale)
            of_expert.copy_(change if self.outputs_first else change.T)
        return result.add_(weight)


def _rows(info: TensorInfo, first: int, end: int) -> TensorInfo:
    """Some rows of a stored matrix."""
    width = info.shape[1]
    return replace(info, shape=(end - first, width), start=info.start + first * width * SIZES[info.dtype])


@dataclass(frozen=True)
class ReplaceRows:
    """Replaces some rows of a weight (PEFT's trainable tokens) by `values` [rows, width]."""

    rows: tuple[int, ...]
    values: TensorInfo

    def apply(self, weight: Tensor, where: Where | None) -> Tensor:
        changed = weight.clone()
        changed[list(self.rows)] = read_tensor(self.values, where).to(weight.dtype)
        return changed


@dataclass(frozen=True)
class Shift:
    """Adds scale * `values` to a bias, both [outputs]."""

    values: TensorInfo
    scale: float

    def apply(self, weight: Tensor, where: Where | None) -> Tensor:
        return weight + self.scale * read_tensor(self.values, where).to(weight.dtype)


@dataclass(frozen=True)
class Change:
    """A tensor that is computed from the stored tensor `source` by `steps`. `info`: the result's shape and dtype; its
    bytes are stored nowhere."""

    info: TensorInfo
    source: TensorInfo
    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> Change:
        """This change with another step behind it."""
        return replace(self, steps=(*self.steps, step))

    def tensor(self, where: Where | None = None) -> Tensor:
        """The tensor, computed in float32 (float64 if that is the result's dtype), rounded once at the end."""
        import torch

        dtype: torch.dtype = getattr(torch, self.info.dtype)
        weight = read_tensor(self.source, where)
        if self.steps:
            weight = weight.to(torch.promote_types(dtype, torch.float32))
        for step in self.steps:
            weight = step.apply(weight, where)
        return weight.to(dtype)
