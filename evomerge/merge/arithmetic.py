"""Arithmetic that all merge methods share: float32, and sums that no thread count changes.

Bits must not depend on where in a tensor an element stands, so nothing here uses a fused multiply-add (`torch.add`
with `alpha`, `addcmul`, `lerp`): the vectorized part of such a kernel and its scalar tail may round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_ROW = 4096  # elements that one row of a reduction adds up, in float64
_BLOCK = 256 * _ROW  # elements that are widened to float64 at a time


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of the merge math: float32 (float64 stays)."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def delta(source: Tensor, base: Tensor) -> Tensor:
    """source - base, rounded to the dtype in which both are stored, then widened: a 16-bit delta has the equals that
    mergekit's has, so both trim the same elements."""
    return wide(source - base)


def total(values: Tensor) -> float:
    """The sum of all elements in float64, the same for every thread count: rows of fixed length are added up, then
    the rows' sums likewise. (`Tensor.sum()` splits by threads.)"""
    return _reduce(values.numel(), lambda a, b: values.reshape(-1)[a:b].to(torch.float64), values.device)


def total_magnitude(values: Tensor) -> float:
    """The L1 norm, summed as `total` does."""
    return _reduce(values.numel(), lambda a, b: values.reshape(-1)[a:b].to(torch.float64).abs_(), values.device)


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product, summed as `total` does."""

    def products(start: int, end: int) -> Tensor:
        left, right = a.reshape(-1)[start:end], b.reshape(-1)[start:end]
        return left.to(torch.float64).mul_(right)

    return _reduce(a.numel(), products, a.device)


def _reduce(count: int, block: Callable[[int, int], Tensor], device: torch.device) -> float:
    sums = [_row_sums(block(start, min(start + _BLOCK, count))) for start in range(0, count, _BLOCK)]
    rows = torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64, device=device)
    while rows.numel() > 1:
        rows = _row_sums(rows)
    return float(rows.item()) if rows.numel() else 0.0


def _row_sums(values: Tensor) -> Tensor:
    padding = -values.numel() % _ROW
    if padding:
        values = torch.cat([values, values.new_zeros(padding)])
    return values.reshape(-1, _ROW).sum(dim=1)


def spans(count: int, size: int) -> Iterator[slice]:
    """The slices that cut `count` elements into pieces of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
