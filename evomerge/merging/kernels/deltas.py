"""Selects the elements of deltas that take part in a merge, and builds the sum that task-arithmetic methods end in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.kernels.magnitudes import Cut

_ZERO = 1e-8  # a sum of weights below this does not divide (mergekit 0.1.5)
_TINY = 1e-7  # L1 norms below this are not rescaled (mergekit 0.1.5, sparsify)
_LAST = (1 << 31) - 1  # positions behind a chunk are cut to int32
Rows = Sequence[Sequence[float]]


def combine(
    inputs: Inputs,
    weight: Sequence[float],
    *,
    elect: bool,
    normalize: bool,
    lambda_: float,
    keep: str = "all",
    rescale: Sequence[float] | None = None,
    thresholds: Rows = (),
    ints: Callable[[int], Sequence[Sequence[int]]] | None = None,
    cuts: Sequence[Cut] = (),
) -> Blend:
    """base + lambda * sum of weight_i rescale_i delta_i over the kept elements (`elementwise.deltas`).

    `normalize` divides by the sum of the weights; with `elect`, of the weights of the deltas that agree.
    """
    assert inputs.base is not None
    factors = [w * r for w, r in zip(weight, rescale or [1.0] * len(weight), strict=True)]
    total = sum(weight)
    if normalize and not elect and abs(total) >= _ZERO:
        factors = [f / total for f in factors]
    options = {"work": inputs.work, "keep": keep, "elect": elect, "normalize": normalize and elect}
    floats = [factors, list(weight), [lambda_] * len(factors), *thresholds]
    kernel = Kernel("deltas", tuple(options.items()))
    ints = ints or (lambda start: ((0,) * len(factors),))
    return Blend(kernel, inputs.base, inputs.tensors, floats, ints, cuts=cuts)


def shares(weight: Sequence[float], normalize: bool) -> Sequence[float]:
    """The weights; if `normalize`, divided by their sum, unless that is 0."""
    total = sum(weight)
    return [w / total for w in weight] if normalize and abs(total) >= _ZERO else weight


def weighted_sum(inputs: Inputs, weight: Sequence[float]) -> Tensor:
    """sum of weight_i delta_i, float32, on the device."""
    total = torch.zeros_like(inputs.reference)
    for i, w in enumerate(weight):
        total = total + inputs.delta(i) * w
    return total


def masked(
    inputs: Inputs,
    weight: Sequence[float],
    masks: Sequence[Tensor],
    rescale: Sequence[float],
    *,
    elect: bool,
    normalize: bool,
    lambda_: float,
) -> Blend:
    """`combine` of the elements that masks keep (uint8, 0 or 1, flat, one for each delta)."""
    blend = combine(inputs, weight, elect=elect, normalize=normalize, lambda_=lambda_, rescale=rescale)
    options = [option for option in blend.kernel.options if option[0] != "keep"]
    floats = [[*row, *row] for row in blend.floats]
    return replace(
        blend,
        kernel=Kernel("masked", tuple(options)),
        tensors=[*inputs.tensors, *masks],
        floats=floats,
        reusable=False,
    )


def stitched(inputs: Inputs, weight: Sequence[float], lambda_: float, kept: Mapping[str, Any]) -> Blend:
    """`combine` of the elements of a `window`, divided by the number of deltas that keep each."""
    blend = combine(inputs, weight, elect=False, normalize=False, lambda_=lambda_, **kept)
    return replace(blend, kernel=Kernel("stitched", (("work", inputs.work), ("keep", kept["keep"]))))


def trim_count(density: float, count: int) -> int:
    """The number of elements, of `count`, that magnitude trimming keeps: max(1, int(density n)), as mergekit 0.1.5; 0
    at density 0."""
    if density >= 1:
        return count
    return max(1, int(density * count)) if density > 0 and count else 0


def middle_ranks(density: float, gamma: float, count: int) -> tuple[int, int]:
    """The ranks (drop, keep), counted from the largest magnitude, between which Model Breadcrumbs keeps an element: the
    `gamma` share above is dropped, or less where `density` would not be reached (mergekit 0.1.5)."""
    if density >= 1:
        return 0, count
    target = int(density * count)
    drop = min(int(gamma * count), count - target)
    return drop, drop + target


def rescale_ratio(before: float, after: float) -> float:
    """The factor that gives a sparsified delta the L1 norm of the whole one (mergekit; the DARE paper divides by the
    density instead)."""
    return 1.0 if before < _TINY or after < _TINY else before / after


def drawn_ratios(inputs: Inputs, density: Sequence[float]) -> list[float]:
    """The `rescale_ratio` of each delta under a random mask of its density."""
    thinned = [min(d, 1.0) for d in density]
    pairs = zip(inputs.full_norms(), inputs.drawn_norms(thinned), thinned, strict=True)
    return [1.0 if d >= 1 else rescale_ratio(before, after) for before, after, d in pairs]


def window(inputs: Inputs, keep: Sequence[int], drop: Sequence[int] | None = None) -> dict[str, Any]:
    """The arguments with which `combine` keeps each delta's elements from rank `drop` (default: the first) to rank
    `keep`, counted from the largest magnitude."""
    if drop is None or not any(drop):
        if all(k >= inputs.count for k in keep):
            return {"keep": "all"}
        return _window("largest", [_cuts(inputs, keep)])
    return _window("between", [_cuts(inputs, keep), _cuts(inputs, drop)])


def _cuts(inputs: Inputs, counts: Sequence[int]) -> list[Cut]:
    return [inputs.cut(i, count) for i, count in enumerate(counts)]


def _window(kind: str, rows: Sequence[Sequence[Cut]]) -> dict[str, Any]:
    thresholds = [[cut.value for cut in row] for row in rows]
    cuts = [cut for row in rows for cut in row]
    return {"keep": kind, "thresholds": thresholds, "ints": functools.partial(positions, rows), "cuts": cuts}


def positions(rows: Sequence[Sequence[Cut]], start: int) -> list[list[int]]:
    """The cuts' positions counted from the first element of the chunk that begins at `start`."""
    return [[min(max(cut.position - start, 0), _LAST) for cut in row] for row in rows]


def values_at(values: Tensor, ranks: Sequence[int]) -> Tensor:
    """The values that stand at some ranks of the ascending order, exactly. All values must be finite."""
    # Count values by the upper 16 bits of their float32, in bins whose order is the values' order
    bits = values.reshape(-1).to(torch.float32).view(torch.int32) >> 16
    bins = torch.where(bits < 0, -1 - (bits & 0x7FFF), bits) + (1 << 15)
    ends = torch.bincount(bins, minlength=1 << 16).cumsum(0).cpu().numpy()
    # Sort the values of each rank's bin
    at_ranks = []
    for rank in ranks:
        bin_ = int(np.searchsorted(ends, rank, side="right"))
        inside = values.reshape(-1)[bins == bin_].sort().values
        at_ranks.append(inside[rank - (int(ends[bin_ - 1]) if bin_ else 0)])
    return torch.stack(at_ranks)
