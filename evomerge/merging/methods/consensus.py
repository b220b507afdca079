"""Consensus merging: what one task alone needs, and what none does, is left out (Wang et al. 2024,
https://arxiv.org/abs/2405.07813)."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merging.kernels.deltas import shares
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs


def consensus(
    inputs: Inputs, *, weight: Sequence[float], threshold: Sequence[float], k: int, normalize: bool, lambda_: float
) -> Blend:
    """Task arithmetic of the elements that at least `k` sources need: base + lambda D there, with D = sum of delta_i
    and delta_i = weight_i (theta_i - base), and the base elsewhere.

    A source needs an element where |delta_i| > threshold_i |D - delta_i|: where its own change is no small part of what
    all others change together (the masks of the paper's section 3.2).
    """
    count = len(inputs)
    floats = [list(shares(weight, normalize)), [lambda_] * count, list(threshold), [float(k)] * count]
    return Blend(Kernel("needed", (("work", inputs.work),)), inputs.base, inputs.tensors, floats)
