"""Model Stock (Jang et al. 2024, https://arxiv.org/abs/2403.19522)."""

from __future__ import annotations

import math
from itertools import combinations

from torch import Tensor

from evomerge.merging.kernels.geometry import Gram, by_rows
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.methods.linear import average

_SHORT = 1e-6  # a product of two norms is divided by no less than this (mergekit)
_SINGULAR = 1e-6  # a smaller denominator of the ratio gives no ratio: the base stays (mergekit)


def model_stock(inputs: Inputs, *, filter_wise: bool) -> Blend | Tensor:
    """t * mean of theta_i + (1 - t) * base, with the interpolation ratio of the paper's section 4 for N models,

    t = N cos / (1 + (N - 1) cos),

    where cos is the mean cosine between two deltas: of whole tensors or, if `filter_wise`, of each row along the last
    dimension. mergekit takes deltas for shorter than they are where a product of norms is below 1e-6, and t is
    not held to a range.
    """
    number = len(inputs)
    if not filter_wise or len(inputs.shape) < 2 or not inputs.count:
        t = _ratio(inputs.gram(deltas=True))
        return average(inputs, [t / number] * number, base=1 - t)
    ratio = by_rows([inputs.delta(i) for i in range(number)], lambda products: [_ratio(products)])
    total = inputs.theta(0)
    for i in range(1, number):
        total = total + inputs.theta(i)
    return ratio * (total / number) + (1 - ratio) * inputs.reference


def _ratio(products: Gram) -> float:
    """The interpolation ratio t, from the inner products of the deltas."""
    number = len(products)
    norms = [math.sqrt(row[i]) for i, row in enumerate(products)]
    cosines = [
        max(-1.0, min(1.0, products[i][j] / max(norms[i] * norms[j], _SHORT)))
        for i, j in combinations(range(number), 2)
    ]
    cosine = sum(cosines) / len(cosines)
    denominator = 1 + (number - 1) * cosine
    return number * cosine / denominator if abs(denominator) >= _SINGULAR else 0.0
