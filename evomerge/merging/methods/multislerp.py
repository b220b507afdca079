"""Multi-SLERP: a weighted mean of directions, with the weighted mean of the lengths (mergekit 0.1.5,
merge_methods.multislerp)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from evomerge.errors import TrialError
from evomerge.merging.kernels.deltas import combine
from evomerge.merging.kernels.geometry import Gram, length, scaled
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.methods.linear import average

_CANCELS = 1e-6  # a mean direction shorter than this share of its parts is float32 rounding


def multislerp(inputs: Inputs, *, weight: Sequence[float], normalize_weights: bool, eps: float) -> Blend | Tensor:
    """(sum of weight_i |x_i|) * m, with m the direction of the sum of weight_i x_i / |x_i|; x_i are the models, or,
    with a base, the deltas, and the result is added to the base. One model alone comes back as it is.

    mergekit goes on to project the unit vectors onto the tangent space at m, averages them there and maps the mean
    tau back: cos|tau| m + sin|tau| tau / |tau|. As m is the direction of the same weighted sum, tau is 0 but for
    rounding; what its `eps` adds to |tau| remains as a factor cos(eps).

    Directions that cancel have no mean. mergekit then takes the weighted sum of two models and refuses more; here it
    is the weighted sum for any number, so that tensors without a change stay the base's.

    Raises:
        TrialError: the weights are to be normalised and sum to 0.
    """
    if len(inputs) == 1:
        return inputs.tensors[0]
    deltas = inputs.base is not None
    coefficients = _coefficients(inputs.gram(deltas=deltas), _weights(weight, normalize_weights), eps)
    if deltas:
        return combine(inputs, coefficients, elect=False, normalize=False, lambda_=1.0)
    return average(inputs, coefficients)


def _weights(weight: Sequence[float], normalize: bool) -> Sequence[float]:
    if not normalize:
        return weight
    total = sum(weight)
    if total == 0:
        raise TrialError(f"multislerp cannot normalise weights that sum to 0 ({', '.join(map(str, weight))})")
    return [w / total for w in weight]


def _coefficients(products: Gram, weight: Sequence[float], eps: float) -> Sequence[float]:
    """The coefficients of the vectors in the result, from their inner products."""
    norms = [math.sqrt(row[i]) for i, row in enumerate(products)]
    inverse = [1 / (norm + eps) if norm > 0 else 0.0 for norm in norms]
    mean = length(scaled(products, inverse), weight)
    if mean < eps or mean <= _CANCELS * sum(map(abs, weight)):
        return weight
    scale = math.cos(eps) * sum(w * norm for w, norm in zip(weight, norms, strict=True)) / mean
    return [scale * w * i for w, i in zip(weight, inverse, strict=True)]
