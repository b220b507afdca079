"""TSV-Merge: the largest singular directions of each task, made orthogonal to those of the others (Gargiulo et al.
2024, https://arxiv.org/abs/2412.00081)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.kernels.deltas import combine
from evomerge.merging.kernels.factors import Factors, Wanted, factors
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.kernels.polar import LOWEST, polar
from evomerge.merging.kernels.products import product


def tsv(inputs: Inputs, *, weight: Sequence[float], part: Sequence[float], lambda_: float) -> Blend | Tensor:
    """base + lambda U' diag(weight_i s_i) V', with U' and V' the orthogonal matrices that are nearest to all sources'
    directions side by side (`polar`).

    Of n sources and a matrix with R singular directions, each gives the largest R / n times its `part`, rounded down,
    and one at least. Vectors, embeddings and heads: the base plus lambda times the mean of weight_i delta_i.
    """
    if not inputs.is_matrix:
        mean = [w / len(inputs) for w in weight]
        return combine(inputs, mean, elect=False, normalize=False, lambda_=lambda_)
    return inputs.by_matrix(lambda matrix: _merged(matrix, weight, part, lambda_))


def _merged(inputs: Inputs, weight: Sequence[float], part: Sequence[float], lambda_: float) -> Tensor:
    most = min(inputs.shape) // len(inputs)
    counts = tuple(max(1, int(share * most)) if share > 0 else 0 for share in part)
    # Of the last counts only: a search over `part` would fill the memory.
    known: dict[tuple[int, ...], Factors] = inputs.once("orthogonal", dict)
    if counts not in known:
        known.clear()
        known[counts] = _orthogonal(inputs, counts)
    reference = inputs.reference
    u, s, v = (part.to(reference) for part in vars(known[counts]).values())
    scales = [values * w for values, w in zip(s.split(counts), weight, strict=True)]
    return reference + lambda_ * product(u * torch.cat(scales), v)


@torch.no_grad()
def _orthogonal(inputs: Inputs, counts: Sequence[int]) -> Factors:
    """U' [m, K], all singular values [K], and V' [K, n], of so many directions of each source, on the host."""
    wanted = Wanted.of("parts", inputs.shape, len(inputs))
    each = [factors(inputs, i, wanted) for i in range(len(inputs))]
    u = torch.cat([parts.u[:, :count] for parts, count in zip(each, counts, strict=True)], dim=1)
    v = torch.cat([parts.v[:count] for parts, count in zip(each, counts, strict=True)])
    s = torch.cat([parts.s[:count] for parts, count in zip(each, counts, strict=True)])
    # They are known to float32, and sources that share a direction have it twice: what is left of the second is noise.
    u, v = (polar(part.double(), LOWEST[torch.float32]).float() for part in (u, v))
    return Factors(u, s, v)
