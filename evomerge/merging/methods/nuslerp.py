"""NuSLERP: spherical interpolation of two models, or of their deltas (mergekit 0.1.5, merge_methods.nuslerp; Shoemake
1985)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.kernels.deltas import combine
from evomerge.merging.kernels.geometry import Gram, arc, by_rows
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.methods.linear import average

_STRAIGHT = 1 - 2**-25  # cosines that float32 rounds to 1 or -1: mergekit computes them in float32
_SHORT = 1e-7  # vectors are divided by no less than this (mergekit)
_BALANCED = 1e-6  # weights with a smaller sum count equally (mergekit)


def nuslerp(
    inputs: Inputs, *, weight: Sequence[float], nuslerp_flatten: bool, nuslerp_row_wise: bool
) -> Blend | Tensor:
    """The point at t = weight_1 / (weight_0 + weight_1) on the arc between two models; with a base, on the arc between
    their deltas, which is added to the base.

    `nuslerp_flatten`: each tensor is one vector; so is one with a single dimension in any case. Else the vectors lie
    along the last dimension, with `nuslerp_row_wise` along the first.
    """
    total = sum(weight)
    t = weight[1] / total if abs(total) >= _BALANCED else 0.5
    if not nuslerp_flatten and len(inputs.shape) > 1:
        return _row_wise(inputs, t, 0 if nuslerp_row_wise else -1)
    if inputs.base is None:
        return average(inputs, _coefficients(inputs.gram(deltas=False), t))
    coefficients = _coefficients(inputs.gram(deltas=True), t)
    return combine(inputs, coefficients, elect=False, normalize=False, lambda_=1.0)


def _coefficients(products: Gram, t: float) -> tuple[float, float]:
    """The coefficients of two vectors in the point at `t` on their arc, from their inner products."""
    (aa, ab), (_, bb) = products
    return arc(ab / (max(math.sqrt(aa), _SHORT) * max(math.sqrt(bb), _SHORT)), t, _STRAIGHT)


def _row_wise(inputs: Inputs, t: float, dim: int) -> Tensor:
    vectors = [inputs.theta(i) if inputs.base is None else inputs.delta(i) for i in range(len(inputs))]
    a, b = (v.movedim(dim, -1) for v in vectors)
    if not a.numel():
        return vectors[0]
    ends = by_rows([a, b], lambda products: _coefficients(products, t))
    merged = (a * ends[..., :1] + b * ends[..., 1:]).movedim(-1, dim)
    return merged if inputs.base is None else inputs.reference + merged
