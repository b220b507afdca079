"""Task arithmetic (Ilharco et al. 2023, https://arxiv.org/abs/2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merge.arithmetic import delta
from evomerge.merge.consensus import combine


def task_arithmetic(
    tensors: Sequence[Tensor], base: Tensor, *, weight: Sequence[float], normalize: bool, lambda_: float
) -> Tensor:
    """base + lambda * sum of weight_i (theta_i - base).

    Shapes: all tensors the same; returns that shape in float32.
    """
    deltas = [delta(tensor, base) for tensor in tensors]
    return combine(base, deltas, weight, elect=False, normalize=normalize, lambda_=lambda_)
