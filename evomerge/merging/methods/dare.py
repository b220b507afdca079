"""DARE: drop delta elements at random and rescale the rest (Yu et al. 2024, https://arxiv.org/abs/2311.03099)."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merging.kernels.deltas import combine, drawn_ratios
from evomerge.merging.kernels.inputs import Blend, Inputs, mask_ints


def dare_linear(
    inputs: Inputs, *, weight: Sequence[float], density: Sequence[float], normalize: bool, rescale: bool, lambda_: float
) -> Blend:
    """Task arithmetic of randomly thinned deltas."""
    return _dare(inputs, weight, density, rescale, elect=False, normalize=normalize, lambda_=lambda_)


def dare_ties(
    inputs: Inputs, *, weight: Sequence[float], density: Sequence[float], normalize: bool, rescale: bool, lambda_: float
) -> Blend:
    """Sign election among randomly thinned deltas."""
    return _dare(inputs, weight, density, rescale, elect=True, normalize=normalize, lambda_=lambda_)


def _dare(
    inputs: Inputs,
    weight: Sequence[float],
    density: Sequence[float],
    rescale: bool,
    *,
    elect: bool,
    normalize: bool,
    lambda_: float,
) -> Blend:
    if all(d >= 1 for d in density):
        return combine(inputs, weight, elect=elect, normalize=normalize, lambda_=lambda_)
    # Mask with probability `density`, by the hash of `masks`; rescale to the old L1 norm (the paper: by 1 / density)
    ratios = drawn_ratios(inputs, density) if rescale else [1.0] * len(density)
    factors = [r if d > 0 else 0.0 for r, d in zip(ratios, density, strict=True)]
    ints = mask_ints(inputs.draw, [min(d, 1.0) for d in density])
    return combine(
        inputs, weight, elect=elect, normalize=normalize, lambda_=lambda_, keep="drawn", rescale=factors, ints=ints
    )
