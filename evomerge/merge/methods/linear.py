"""Weighted average (model soups, Wortsman et al. 2022, https://arxiv.org/abs/2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merge.arithmetic import wide


def linear(tensors: Sequence[Tensor], base: Tensor | None, *, weight: Sequence[float], normalize: bool) -> Tensor:
    """sum of weight_i theta_i, divided by the sum of the weights if `normalize`. The base is a model like the others.

    Shapes: all tensors the same; returns that shape in float32. A weight sum of 0 gives values that are not finite.
    """
    result = torch.zeros_like(wide(tensors[0]))
    for tensor, w in zip(tensors, weight, strict=True):
        result.add_(wide(tensor) * w)
    return result.div_(sum(weight)) if normalize else result
