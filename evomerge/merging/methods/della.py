"""DELLA: drop delta elements at random, the smaller of a row the more likely (Deep et al. 2024,
https://arxiv.org/abs/2406.11617, MagPrune; mergekit 0.1.5, sparsify).

1. Rank the n elements of a row by magnitude, r = 0 (smallest) to n - 1.
2. Keep element i with probability p_i = density - epsilon + 2 epsilon r_i / (n - 1), by the hash of `masks`.
3. `rescale`: multiply the kept elements so that the delta has its old L1 norm (the paper divides each by p_i).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import fixed_point, fixed_scale, spans
from evomerge.merging.kernels.deltas import combine, masked, rescale_ratio
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.kernels.masks import limits as hash_limits

_CHUNK = 1 << 18  # elements that are ranked, and drawn, at a time: what this takes stays in the cache


def della(
    inputs: Inputs,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Blend:
    """Sign election among deltas that keep an element with probability `density` - `epsilon` (the smallest of its row)
    to `density` + `epsilon` (the largest)."""
    return _della(inputs, weight, density, epsilon, rescale, elect=True, normalize=normalize, lambda_=lambda_)


def della_linear(
    inputs: Inputs,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
) -> Blend:
    """Task arithmetic of deltas thinned as in `della`."""
    return _della(inputs, weight, density, epsilon, rescale, elect=False, normalize=normalize, lambda_=lambda_)


def _della(
    inputs: Inputs,
    weight: Sequence[float],
    density: Sequence[float],
    epsilon: Sequence[float],
    rescale: bool,
    *,
    elect: bool,
    normalize: bool,
    lambda_: float,
) -> Blend:
    if all(d >= 1 for d in density):
        return combine(inputs, weight, elect=elect, normalize=normalize, lambda_=lambda_)
    masks, ratios = [], []
    for i, (d, e) in enumerate(zip(density, epsilon, strict=True)):
        if 0 < d < 1:
            mask, norm = _random_mask(inputs, i, d, e)
        else:
            mask, norm = torch.full((inputs.count,), int(d >= 1), dtype=torch.uint8, device=inputs.device), 0.0
        masks.append(mask)
        ratios.append(rescale_ratio(inputs.full_norms()[i], norm) if rescale else 1.0)
    return masked(inputs, weight, masks, ratios, elect=elect, normalize=normalize, lambda_=lambda_)


def _random_mask(inputs: Inputs, i: int, density: float, epsilon: float) -> tuple[Tensor, float]:
    """The mask of delta `i` (uint8, flat), and the L1 norm of the kept elements, comparable to `full_norms`."""
    sizes = inputs.delta(i).abs_()
    limits, sizes = _hash_limits(sizes, density, epsilon).reshape(-1), sizes.reshape(-1)
    kept = torch.empty(inputs.count, dtype=torch.uint8, device=inputs.device)
    norm, scale = 0, fixed_scale(inputs.magnitudes(i).largest)
    for span in spans(inputs.count, _CHUNK):
        torch.le(inputs.draw.words(i, span.start, span.stop, inputs.device), limits[span], out=kept[span])
        norm += int((fixed_point(sizes[span], scale) * kept[span]).sum(dtype=torch.float64))
    return kept, norm / scale


def _hash_limits(sizes: Tensor, density: float, epsilon: float) -> Tensor:
    """The largest hash with which each element is kept (`masks.limits` of p_i), by its rank in its row: int32.

    A row runs along the second dimension, a tensor of one dimension is one row (mergekit 0.1.5). A row of one element
    is kept with probability `density` (mergekit: NaN).
    """
    rows = sizes.movedim(1, -1) if sizes.dim() > 1 else sizes
    flat = rows.reshape(-1, max(1, rows.shape[-1]))
    width = flat.shape[1]
    ranks = torch.arange(width, dtype=torch.float64)
    shares = ranks / (width - 1) if width > 1 else ranks + 0.5
    by_rank = hash_limits(density - epsilon + 2 * epsilon * shares).to(sizes.device)
    result = torch.empty(flat.shape, dtype=torch.int32, device=sizes.device)
    for span in spans(flat.shape[0], max(1, _CHUNK // width)):
        order = _ascending(flat[span])
        result[span].scatter_(1, order, by_rank.expand_as(order))
    result = result.reshape(rows.shape)
    return result.movedim(-1, 1) if sizes.dim() > 1 else result


def _ascending(sizes: Tensor) -> Tensor:
    """The places of each row's elements by ascending magnitude (as float32), equals by place: int64."""
    # The bits of magnitudes have the magnitudes' order. So magnitude and place are sorted as one integer, which numpy
    # does many times faster than torch sorts with indices.
    keys = sizes.to(torch.float32).view(torch.int32).to(torch.int64) << 32
    keys |= torch.arange(sizes.shape[1], device=sizes.device)
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)
    else:
        keys = keys.sort(dim=1).values
    return keys & 0xFFFFFFFF
