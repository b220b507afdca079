"""Localize-and-Stitch without data: the largest changes of each source, averaged where they overlap (He et al. 2024,
https://arxiv.org/abs/2408.13656)."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merging.kernels.deltas import stitched, trim_count, window
from evomerge.merging.kernels.inputs import Blend, Inputs


def stitch(inputs: Inputs, *, weight: Sequence[float], density: Sequence[float], lambda_: float) -> Blend:
    """base + lambda * the sum of weight_i (theta_i - base), each trimmed to the `density` share of largest magnitude,
    divided by the number of sources that keep the element.

    The paper's regions are trained masks or, without data, the largest changes of the whole model; here they are those
    of each tensor.
    """
    kept = window(inputs, [trim_count(share, inputs.count) for share in density])
    return stitched(inputs, weight, lambda_, kept)
