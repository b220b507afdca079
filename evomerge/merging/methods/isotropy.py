"""Task arithmetic whose directions are made alike, by a share: at 1 it is Iso-C (Marczak et al. 2025,
https://arxiv.org/abs/2502.04959)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.kernels.deltas import combine, shares, weighted_sum
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.kernels.polar import polar
from evomerge.merging.kernels.products import inner


def isotropy(
    inputs: Inputs, *, weight: Sequence[float], isotropy: float, normalize: bool, lambda_: float
) -> Blend | Tensor:
    """base + lambda ((1 - isotropy) D + isotropy s U V^T), where D = sum of weight_i (theta_i - base) is a matrix U
    diag(s_j) V^T and s is the mean of its s_j. Each singular value goes as far towards their mean.

    At isotropy 0 this is task arithmetic, and so it is for vectors, embeddings and heads. U V^T is found by `polar`.
    """
    # A tensor in place of the number is there for its slope, which there is at 0, too.
    if not inputs.is_matrix or (not isinstance(isotropy, Tensor) and isotropy == 0):
        return combine(inputs, weight, elect=False, normalize=normalize, lambda_=lambda_)
    factors = shares(weight, normalize)

    def merged(matrix: Inputs) -> Tensor:
        total = weighted_sum(matrix, factors)
        directions = polar(total)
        mean = inner(directions, total) / min(total.shape)
        return matrix.reference + lambda_ * ((1 - isotropy) * total + isotropy * (mean * directions))

    return inputs.by_matrix(merged)
