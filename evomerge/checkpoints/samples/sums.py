"""Sums over sampled elements, and what follows from them for all elements, with standard errors.

Each tensor is a stratum, its runs are the clusters that were drawn in it. A result is a product of powers of estimated
totals (a ratio, a cosine, a relative norm), and its error that of its linearization (Särndal, Swensson and Wretman
1992, "Model Assisted Survey Sampling", sections 4.2 and 5.5). A tensor that was read whole adds no error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number estimated from a sample, with its standard error (0 where all was read)."""

    value: float
    error: float = 0.0


@dataclass(frozen=True)
class TensorSums:
    """What was summed of one tensor.

    Attributes:
        name: by the base's names.
        layer: its layer; None outside of the layers.
        module: its name inside of a layer, with `*` for the number of an expert.
        matrix: whether it has two dimensions or more.
        elements: of the whole tensor.
        sampled: of these, how many were read.
        sums: [runs, quantities].
    """

    name: str
    layer: int | None
    module: str
    matrix: bool
    elements: int
    sampled: int
    sums: Sums

    @property
    def scale(self) -> float:
        """How many elements each sampled one stands for."""
        return self.elements / self.sampled

    @property
    def whole(self) -> bool:
        return self.sampled >= self.elements


def estimate(
    tensors: Sequence[TensorSums], columns: Mapping[str, int], numerator: str, powers: Mapping[str, float]
) -> Estimate | None:
    """numerator * prod(total ** power) over the tensors; None where a total below it is 0.

    Args:
        columns: quantity -> its column in `sums`.
        numerator: of which the total enters as it is; it may be of either sign.
        powers: of the other totals, which are positive.
    """
    names = [numerator, *powers]
    at = [columns[name] for name in names]
    totals = np.zeros(len(at))
    for tensor in tensors:
        totals += tensor.scale * tensor.sums[:, at].sum(axis=0)
    if not tensors or (totals[1:] <= 0).any() or not np.isfinite(totals).all():
        return None
    factor = math.prod(float(total) ** power for total, power in zip(totals[1:], powers.values(), strict=True))
    value = float(totals[0]) * factor
    # d value / d total, for each of the totals
    slopes = np.array(
        [factor, *(value * power / total for total, power in zip(totals[1:], powers.values(), strict=True))]
    )
    variance = 0.0
    for tensor in tensors:
        runs = len(tensor.sums)
        if tensor.whole or runs < 2:
            continue
        part = tensor.scale * (tensor.sums[:, at] @ slopes)
        variance += (1 - tensor.sampled / tensor.elements) * runs * float(part.var(ddof=1))
    return Estimate(value, math.sqrt(variance))


def root(squared: Estimate | None) -> Estimate | None:
    """The square root of an estimate."""
    if squared is None:
        return None
    value = math.sqrt(max(0.0, squared.value))
    return Estimate(value, squared.error / (2 * value) if value else 0.0)
