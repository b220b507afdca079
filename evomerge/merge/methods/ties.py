"""TIES: trim, elect sign, merge (Yadav et al. 2023, https://arxiv.org/abs/2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merge.arithmetic import delta
from evomerge.merge.consensus import combine
from evomerge.merge.sparsify import trim


def ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Tensor:
    """Trim each delta to the `density` share of largest magnitude, elect each element's sign by the weighted sum, add
    up the deltas that agree with it.

    Shapes: all tensors the same; returns that shape in float32.
    """
    deltas = [trim(delta(t, base), d, rescale) for t, d in zip(tensors, density, strict=True)]
    return combine(base, deltas, weight, elect=True, normalize=normalize, lambda_=lambda_)
