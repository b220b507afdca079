"""Task arithmetic with a number for each band of a matrix's delta, in place of one for the whole delta."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.kernels.bands import merged
from evomerge.merging.kernels.deltas import combine
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.recipe.bands import Bands


def band_arithmetic(inputs: Inputs, *, weight: Sequence[float | Bands]) -> Blend | Tensor:
    """base + sum over i of U_i diag(weight_i s_i) V_i^T, where theta_i - base = U_i diag(s_i) V_i^T. Where all weights
    are plain numbers this is task arithmetic. The bands fit the tensor, which the plan has checked."""
    plain = [value for value in weight if not isinstance(value, Bands)]
    if len(plain) == len(weight):
        return combine(inputs, plain, elect=False, normalize=False, lambda_=1.0)
    return merged(inputs, weight)
