"""Model Breadcrumbs: leave out the smallest elements of a delta and its outliers (Davari and Belilovsky 2023,
https://arxiv.org/abs/2312.06795)."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merging.kernels.deltas import combine, middle_ranks, rescale_ratio, window
from evomerge.merging.kernels.inputs import Blend, Inputs


def breadcrumbs(
    inputs: Inputs,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Blend:
    """Task arithmetic of the deltas' middle magnitudes: the `gamma` share of largest elements is dropped, then the
    smallest, until the `density` share is left."""
    return _breadcrumbs(inputs, weight, density, gamma, rescale, elect=False, normalize=normalize, lambda_=lambda_)


def breadcrumbs_ties(
    inputs: Inputs,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Blend:
    """Sign election among the deltas' middle magnitudes."""
    return _breadcrumbs(inputs, weight, density, gamma, rescale, elect=True, normalize=normalize, lambda_=lambda_)


def _breadcrumbs(
    inputs: Inputs,
    weight: Sequence[float],
    density: Sequence[float],
    gamma: Sequence[float],
    rescale: bool,
    *,
    elect: bool,
    normalize: bool,
    lambda_: float,
) -> Blend:
    # Keep ranks drop to keep of each delta's magnitudes: not the `gamma` share above, not the small ones below
    ranks = [middle_ranks(d, g, inputs.count) for d, g in zip(density, gamma, strict=True)]
    kept = window(inputs, [keep for _, keep in ranks], [drop for drop, _ in ranks])
    ratios = None
    if rescale:
        ratios = [rescale_ratio(inputs.norm(i), inputs.kept_norm(i, *rank)) for i, rank in enumerate(ranks)]
    return combine(inputs, weight, elect=elect, normalize=normalize, lambda_=lambda_, rescale=ratios, **kept)
