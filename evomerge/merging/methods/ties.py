"""TIES: trim, elect sign, merge (Yadav et al. 2023, https://arxiv.org/abs/2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merging.kernels.deltas import combine, rescale_ratio, trim_count, window
from evomerge.merging.kernels.inputs import Blend, Inputs


def ties(
    inputs: Inputs,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Blend:
    """Trim each delta to the `density` share of largest magnitude, elect each element's sign by the weighted sum, add
    up the deltas that agree with it (the paper's steps 1 to 3; the last two are in `elementwise.consensus`).
    """
    # Step 1, trim: an exact threshold for each delta
    keep = [trim_count(d, inputs.count) for d in density]
    kept = window(inputs, keep)
    ratios = [rescale_ratio(inputs.norm(i), inputs.kept_norm(i, 0, k)) for i, k in enumerate(keep)] if rescale else None
    return combine(inputs, weight, elect=True, normalize=normalize, lambda_=lambda_, rescale=ratios, **kept)
