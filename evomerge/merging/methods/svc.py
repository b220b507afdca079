"""Task arithmetic with calibrated singular values: what sources share, and the sum counts several times, is scaled down
(SVC, https://arxiv.org/abs/2602.05536)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.kernels.deltas import combine, shares, weighted_sum
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.kernels.products import one_thread, product


def svc(inputs: Inputs, *, weight: Sequence[float], alpha: float, normalize: bool, lambda_: float) -> Blend | Tensor:
    """base + lambda sum_r gamma_r s_r u_r v_r^T, where D = sum of weight_i delta_i is a matrix with the singular values
    s_r, and gamma_r = T / sum_i max(alpha, p_r^i) for the T sources whose weight is not 0.

    p_r^i = <u_r^T D, d_i^r> / |d_i^r|^2 with d_i^r = u_r^T weight_i delta_i: how much the sum has of what source i says
    along r. It is 1 where it has that alone, and more where others say the same. Where a source says nothing along r it
    counts as 1. Vectors, embeddings and heads: task arithmetic.
    """
    if not inputs.is_matrix:
        return combine(inputs, weight, elect=False, normalize=normalize, lambda_=lambda_)
    factors = shares(weight, normalize)

    def merged(matrix: Inputs) -> Tensor:
        total = weighted_sum(matrix, factors)
        parts = [matrix.delta(i) * w for i, w in enumerate(factors) if w != 0]
        change = _calibrated(total.double(), [part.double() for part in parts], alpha) if parts else total
        return matrix.reference + lambda_ * change.to(total)

    return inputs.by_matrix(merged)


def _calibrated(total: Tensor, parts: Sequence[Tensor], alpha: float) -> Tensor:
    """Sum of gamma_r s_r u_r v_r^T, float64, of the sum [m, n] of the sources' parts.

    The smaller side's vectors are enough: those of the other side are products of them with the sum.
    """
    if total.shape[0] > total.shape[1]:
        # v_r^T D^T d_i is s_r times d_i^r, and v_r^T D^T D is s_r times u_r^T D: p_r^i gains a factor of s_r^2 / s_r^2.
        crossed = product(total.T, total)
        vectors = _vectors(crossed)
        along = product(vectors.T, crossed)
        scales = _scales(along, [product(vectors.T, product(total.T, part)) for part in parts], alpha)
        return product(product(total, vectors * scales), vectors.T)
    vectors = _vectors(product(total, total.T))
    along = product(vectors.T, total)
    scales = _scales(along, [product(vectors.T, part) for part in parts], alpha)
    return product(vectors * scales, along)


def _vectors(gram: Tensor) -> Tensor:
    with one_thread():
        vectors: Tensor = torch.linalg.eigh(gram)[1]
    return vectors


def _scales(along: Tensor, each: Sequence[Tensor], alpha: float) -> Tensor:
    """gamma_r, of rows that stand for u_r^T D and the d_i^r."""
    total = torch.zeros_like(along[:, 0])
    for rows in each:
        length = (rows * rows).sum(dim=1)
        kept = (along * rows).sum(dim=1) / length
        total = total + torch.where(length > 0, kept, torch.ones_like(kept)).clamp(min=alpha)
    return len(each) / total.clamp(min=torch.finfo(total.dtype).tiny)
