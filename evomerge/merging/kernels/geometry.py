"""Geometry of tensors taken as vectors, by their inner products alone.

Points on arcs, spherical means and their like lie in the span of the inputs: with the matrix of inner products
(float64) they are a few coefficients, found in plain Python numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import spans

Gram = Sequence[Sequence[float]]
"""All inner products of a few vectors."""

_ELEMENTS = 1 << 20  # of a block of rows that is widened to float64 at a time
_ROW = 4096  # elements that one step of a row's sum adds up


def arc(cosine: float, t: float, straight: float) -> tuple[float, float]:
    """The coefficients of the two ends of an arc at `t`: sin((1 - t) theta) / sin(theta), sin(t theta) /
    sin(theta) (Shoemake 1985, Animating rotation with quaternion curves, section 3.3).

    Where |cosine| is above `straight`, sin(theta) is too small to divide by: the point on the chord.
    """
    cosine = max(-1.0, min(1.0, cosine))
    if abs(cosine) > straight:
        return 1 - t, t
    theta = math.acos(cosine)
    return _sine((1 - t) * theta) / math.sin(theta), _sine(t * theta) / math.sin(theta)


def _sine(angle: float) -> float:
    """The sine of a number, or of a tensor in place of one, which autograd follows (`slopes.py`)."""
    return angle.sin() if isinstance(angle, Tensor) else math.sin(angle)


def scaled(products: Gram, factors: Sequence[float]) -> Gram:
    """The inner products of the vectors, each times its factor."""
    return [[p * a * b for p, b in zip(row, factors, strict=True)] for row, a in zip(products, factors, strict=True)]


def inner(products: Gram, a: Sequence[float], b: Sequence[float]) -> float:
    """The inner product of two combinations of the vectors, given by their coefficients."""
    return sum(x * y * p for x, row in zip(a, products, strict=True) for y, p in zip(b, row, strict=True))


def length(products: Gram, a: Sequence[float]) -> float:
    """The norm of a combination of the vectors. One that cancels is known to about 1e-8 of its parts."""
    return math.sqrt(max(0.0, inner(products, a, a)))


def by_rows(vectors: Sequence[Tensor], numbers: Callable[[Gram], Sequence[float]]) -> Tensor:
    """Applies `numbers` to the inner products of each row of the vectors. A row lies along the last dimension.

    Args:
        vectors: tensors of one shape (..., width), float32 or float64.
        numbers: gives equally many numbers for every row.

    Returns: a tensor (..., number of numbers) of the vectors' dtype and device.
    """
    rows = [v.reshape(math.prod(v.shape[:-1]), v.shape[-1]) for v in vectors]
    count, width = rows[0].shape
    results = [
        list(numbers(products))
        for span in spans(count, max(1, _ELEMENTS // max(1, width)))
        for products in _row_grams([v[span].to(torch.float64).contiguous() for v in rows])
    ]
    table = torch.tensor(results, dtype=vectors[0].dtype, device=vectors[0].device)
    return table.reshape(*vectors[0].shape[:-1], len(results[0]) if results else 0)


def _row_grams(vectors: Sequence[Tensor]) -> Iterator[Gram]:
    """The inner products of the vectors, row by row."""
    number = len(vectors)
    pairs = {(i, j): _row_sums(vectors[i] * vectors[j]).tolist() for i in range(number) for j in range(i, number)}
    columns = [[pairs[min(i, j), max(i, j)] for j in range(number)] for i in range(number)]
    return zip(*(zip(*row, strict=True) for row in columns), strict=True)


def _row_sums(values: Tensor) -> Tensor:
    """The sum of each row, in steps so short that no thread shares a row with another."""
    while values.shape[1] > _ROW:
        values = torch.nn.functional.pad(values, (0, -values.shape[1] % _ROW))
        values = values.reshape(values.shape[0], -1, _ROW).sum(dim=2)
    return values.sum(dim=1)
