"""Task arithmetic (Ilharco et al. 2023, https://arxiv.org/abs/2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merging.kernels.deltas import combine
from evomerge.merging.kernels.inputs import Blend, Inputs


def task_arithmetic(inputs: Inputs, *, weight: Sequence[float], normalize: bool, lambda_: float) -> Blend:
    """base + lambda * sum of weight_i (theta_i - base)."""
    return combine(inputs, weight, elect=False, normalize=normalize, lambda_=lambda_)
