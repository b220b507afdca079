"""Task arithmetic of deltas of low rank: the small singular directions are left out. From the mean of all deltas it is
CART (Choi et al. 2024, https://arxiv.org/abs/2412.12153)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.kernels.deltas import combine, shares
from evomerge.merging.kernels.factors import Wanted, factors, mean_delta
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.kernels.products import product


def rank(
    inputs: Inputs,
    *,
    weight: Sequence[float],
    rank: Sequence[float],
    gain: float,
    centred: bool,
    normalize: bool,
    lambda_: float,
) -> Blend | Tensor:
    """base + lambda * sum of weight_i (c + gain * trunc_i(theta_i - base - c)), where trunc_i keeps the `rank` share of
    largest singular directions, rounded up, and c is 0 or, if `centred`, the mean of the deltas.

    With all weights 1 / n, `centred` is CART with its factor gain / n. Vectors, embeddings and heads are merged by task
    arithmetic, and so is everything where all is kept and the gain is 1.
    """
    is_whole = not isinstance(gain, Tensor) and gain == 1 and all(share >= 1 for share in rank)
    if not inputs.is_matrix or is_whole:
        return combine(inputs, weight, elect=False, normalize=normalize, lambda_=lambda_)
    numbers = shares(weight, normalize)
    return inputs.by_matrix(lambda matrix: _merged(matrix, numbers, rank, gain, centred, lambda_))


def _merged(
    inputs: Inputs, weight: Sequence[float], rank: Sequence[float], gain: float, centred: bool, lambda_: float
) -> Tensor:
    middle = mean_delta(inputs) if centred else None
    total = inputs.reference * 0.0
    wanted = Wanted.of("all", inputs.shape, len(inputs), centred)
    for i, (w, share) in enumerate(zip(weight, rank, strict=True)):
        if share >= 1:
            kept = inputs.delta(i) if middle is None else inputs.delta(i) - middle
        else:
            parts = factors(inputs, i, wanted)
            count = math.ceil(share * len(parts.s))
            # In new memory: libraries may add up in another order where it is aligned otherwise.
            u, v = (parts.u[:, :count] * parts.s[:count]).to(total), parts.v[:count].to(total, copy=True)
            kept = product(u, v)
        total = total + w * (kept * gain if middle is None else middle + kept * gain)
    return inputs.reference + lambda_ * total
