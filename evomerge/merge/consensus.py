"""The sum of deltas that all task-arithmetic methods end in, with or without sign election."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merge.arithmetic import wide

_ZERO = 1e-8  # a sum of weights below this does not divide (mergekit 0.1.5)


def combine(
    base: Tensor,
    deltas: Sequence[Tensor],
    weight: Sequence[float],
    *,
    elect: bool,
    normalize: bool,
    lambda_: float,
) -> Tensor:
    """base + lambda * sum of weight_i delta_i (Ilharco et al. 2023, equation 1).

    `elect`: per element, only the weighted deltas whose sign is that of their sum take part; a sum of 0 elects +
    (TIES, Yadav et al. 2023, section 4, steps 2 and 3). `normalize`: divide by the sum of the weights that took part.

    Shapes: base and each delta the same; returns that shape in the dtype of the deltas. The deltas are used up.
    """
    weighted = [d.mul_(w) for d, w in zip(deltas, weight, strict=True)]
    merged = _sum(weighted)
    if elect:
        positive = merged >= 0
        agreeing = [torch.where(positive, d > 0, d < 0) for d in weighted]
        merged = _sum([d * m for d, m in zip(weighted, agreeing, strict=True)])
        if normalize:
            divisor = _sum([m.to(merged.dtype).mul_(w) for m, w in zip(agreeing, weight, strict=True)])
            merged.div_(torch.where(divisor == 0, 1.0, divisor))
    elif normalize and abs(sum(weight)) >= _ZERO:
        merged.div_(sum(weight))
    if lambda_ != 1:
        merged.mul_(lambda_)
    return merged.add_(wide(base))


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Added up in their order."""
    result = tensors[0].clone()
    for tensor in tensors[1:]:
        result.add_(tensor)
    return result
