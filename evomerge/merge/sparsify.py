"""Which elements of a delta take part in a merge."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.merge.arithmetic import total_magnitude
from evomerge.merge.masks import Draw

_TINY = 1e-7  # L1 norms below this are not rescaled (mergekit 0.1.5, sparsify)


def trim(delta: Tensor, density: float, rescale: bool = False) -> Tensor:
    """Keep exactly the k = max(1, int(density n)) elements of largest magnitude (TIES, Yadav et al. 2023, section 4,
    step 1; k as in mergekit 0.1.5). Among equals at the threshold the lower index is kept. Density 0 keeps none.

    `delta`: any shape, unchanged; returns the same shape and dtype.
    """
    if density >= 1:
        return delta
    return _masked(delta, largest(delta, density), rescale)


def largest(delta: Tensor, density: float) -> Tensor:
    """The mask of `trim`: bool, of delta's shape."""
    flat = delta.reshape(-1).abs()
    if density <= 0 or not flat.numel():
        return torch.zeros_like(delta, dtype=torch.bool)
    k = max(1, int(density * flat.numel()))
    threshold = torch.kthvalue(flat, flat.numel() - k + 1).values
    mask = flat > threshold
    equals = (flat == threshold).nonzero().reshape(-1)
    mask[equals[: k - int(mask.sum())]] = True
    return mask.reshape(delta.shape)


def drop(delta: Tensor, density: float, draw: Draw, source: int, rescale: bool = True) -> Tensor:
    """Keep each element with probability `density` (DARE, Yu et al. 2024, section 3.2). `rescale` restores the L1 norm
    of the whole tensor, as mergekit does, where the paper divides by the density."""
    if density >= 1:
        return delta
    return _masked(delta, draw.mask(source, density, delta), rescale)


def _masked(delta: Tensor, mask: Tensor, rescale: bool) -> Tensor:
    kept = delta * mask
    if not rescale:
        return kept
    before, after = total_magnitude(delta), total_magnitude(kept)
    return kept if before < _TINY or after < _TINY else kept.mul_(before / after)
