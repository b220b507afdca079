"""Arithmetic that all merge methods share: float32 whose bits depend on nothing but the inputs.

Bits must not depend on where in a tensor an element stands, on the number of threads, or on whether the code is
compiled. So elementwise code uses only operations that IEEE 754 rounds exactly (+ - * / and comparisons) and nothing
fused (`torch.add` with `alpha`, `addcmul`, `lerp`); sums of products go through `dot`, sums of magnitudes through
whole numbers (`fixed_point`), which add up the same in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_ROW = 4096  # elements that one row of a reduction adds up, in float64
_BLOCK = 256 * _ROW  # elements that are widened to float64 at a time
_FIXED_BITS = 22  # the largest magnitude of a tensor becomes an integer of at most so many bits
_WHOLE = {torch.float32: 2.0**23, torch.float64: 2.0**52}  # a number of this size has no fraction


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of the merge math: float32 (float64 stays)."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of `wide`'s result."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values rounded to a 16-bit dtype's, kept in float32 (other dtypes: as they are)."""
    return values.to(dtype).to(torch.float32) if dtype.itemsize == 2 else values


def delta(source: Tensor, base: Tensor) -> Tensor:
    """source - base, rounded to the dtype in which both are stored, then widened: a 16-bit delta has the equals that
    mergekit's has, so both trim the same elements."""
    return rounded(wide(source) - wide(base), source.dtype)


def dot(a: Tensor, b: Tensor) -> float:
    """The inner product in float64, the same for every thread count: rows of fixed length are added up, then the
    rows' sums likewise. (`Tensor.sum()` splits by threads.)"""
    return gram(lambda span: [a.reshape(-1)[span], b.reshape(-1)[span]], a.numel())[0][1]


def gram(block: Callable[[slice], Sequence[Tensor]], count: int) -> tuple[tuple[float, ...], ...]:
    """All inner products of vectors of `count` elements, summed as `dot` does.

    `block(span)` gives one span of every vector.
    """
    sums: dict[tuple[int, int], list[Tensor]] = {}
    number = 0
    for span in spans(count, _BLOCK):
        vectors = [v.to(torch.float64) for v in block(span)]
        number = len(vectors)
        for i, a in enumerate(vectors):
            for j in range(i, number):
                sums.setdefault((i, j), []).append(_row_sums(a * vectors[j]))
    products = {pair: _total(parts) for pair, parts in sums.items()}
    number = number or len(block(slice(0, 0)))
    return tuple(tuple(products.get((min(i, j), max(i, j)), 0.0) for j in range(number)) for i in range(number))


def _total(parts: list[Tensor]) -> float:
    """The sum of all row sums, again by rows until one is left."""
    rows = torch.cat(parts)
    while rows.numel() > 1:
        rows = _row_sums(rows)
    return float(rows.item())


def _row_sums(values: Tensor) -> Tensor:
    padding = -values.numel() % _ROW
    if padding:
        values = torch.cat([values, values.new_zeros(padding)])
    return values.reshape(-1, _ROW).sum(dim=1)


def fixed_scale(largest: float) -> float:
    """The power of two by which `fixed_point` multiplies magnitudes of at most `largest`."""
    if not (largest > 0 and math.isfinite(largest)):
        return 1.0
    return 2.0 ** min(_FIXED_BITS - 1 - math.floor(math.log2(largest)), 126)


def fixed_point(magnitudes: Tensor, scale: Tensor | float) -> Tensor:
    """Magnitudes in units of 1 / scale, rounded to whole numbers below 2^22: float64 sums of up to 2^31 of them are
    exact, so they have the same bits in any order, on any device."""
    whole = _WHOLE[magnitudes.dtype]
    return (magnitudes * scale + whole) - whole


def spans(count: int, size: int) -> Iterator[slice]:
    """The slices that cut `count` elements into chunks of at most `size`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
