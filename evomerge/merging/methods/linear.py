"""Weighted average (model soups, Wortsman et al. 2022, https://arxiv.org/abs/2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs


def linear(inputs: Inputs, *, weight: Sequence[float], normalize: bool) -> Blend:
    """sum of weight_i theta_i, divided by the sum of the weights if `normalize`. The base is a model like the others.

    A weight sum of 0 gives values that are not finite.
    """
    total = sum(weight) if normalize else 1.0
    return average(inputs, [w / total if total else w * float("inf") for w in weight])


def average(inputs: Inputs, factors: Sequence[float], *, base: float | None = None) -> Blend:
    """base times the base (if given) + sum of factors_i theta_i."""
    if base is None:
        return Blend(Kernel("weighted"), None, inputs.tensors, [list(factors)])
    assert inputs.base is not None
    return Blend(Kernel("weighted"), None, [inputs.base, *inputs.tensors], [[base, *factors]])
