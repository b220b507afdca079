"""Histograms of a delta's magnitudes, counted once: any density's exact trim threshold is then a lookup.

To keep the k elements of largest magnitude:

1. Find the bin of rank k in the cumulated counts, from the largest magnitude down. A bin is one of the 32,768
   magnitudes of a 16-bit delta, or the upper 16 bits of a float32 magnitude.
2. 16 bits: the threshold is the bin's magnitude. Of the elements equal to it as many are kept as are missing, those of
   lower index first. Counts per chunk of the tensor tell the chunk in which they run out; only that one is read again.
3. float32: the elements of the bin are read and sorted by magnitude, equals by index.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import spans

_CHUNK = (1 << 15) - 64  # elements: their count fits 16 bits, and torch works on so few with one thread
_TABULATED = 32  # chunks whose deltas are taken together
_SCANNED = 1 << 20  # elements that are looked at together: more memory at a time only costs page faults

Block = Callable[[slice], Tensor]
"""A span of the flat delta, in its own dtype (16 bits, float32 or float64)."""


@dataclass(frozen=True)
class Cut:
    """A set of elements of largest magnitude: above `value`, or equal to it at an index below `position`."""

    value: float
    position: int


ALL = Cut(-1.0, 0)
NONE = Cut(math.inf, 0)


class Magnitudes:
    """The histogram of one delta's magnitudes.

    Attributes:
        count: the number of elements.
        largest: the largest magnitude.
        nonzero: the number of elements that are not 0.
    """

    def __init__(self, delta: Block, count: int, dtype: torch.dtype) -> None:
        """One pass over the delta. float64 is counted by its float32 magnitudes' upper bits."""
        self.count, self._exact = count, dtype.itemsize == 2
        total, zeros, tops = np.zeros(1 << 15, dtype=np.int64), 0, [0.0]
        for span in spans(count, _SCANNED):
            size = delta(span).abs()
            total += _histogram(size)
            if not self._exact:
                zeros += int((size == 0).sum())
                tops.append(float(size.max()))
        self.nonzero = count - (int(total[0]) if self._exact else zeros)
        self._bins = np.flatnonzero(total)[::-1]  # from the largest magnitude down
        self._counts = total[self._bins]
        self._cumulated = np.cumsum(self._counts)
        self._values = _values(self._bins, dtype)
        self.largest = float(self._values[0]) if self._exact and count else max(tops)
        self._table: np.ndarray | None = None

    def cut(self, keep: int, delta: Block) -> Cut:
        """The `keep` elements of largest magnitude, exactly; among equals those of lower index."""
        if keep <= 0:
            return NONE
        if keep >= self.count:
            return ALL
        bin_ = int(np.searchsorted(self._cumulated, keep))
        missing = keep - (int(self._cumulated[bin_ - 1]) if bin_ else 0)
        return self._cut_at(bin_, missing, delta) if self._exact else self._cut_inside(bin_, missing, delta)

    def norm(self, keep: int) -> float | None:
        """The sum of the `keep` largest magnitudes, where the counts alone tell it (16-bit deltas)."""
        if not self._exact:
            return None
        taken = np.clip(keep - (self._cumulated - self._counts), 0, self._counts)
        return math.fsum((taken * self._values).tolist())

    def _cut_at(self, bin_: int, missing: int, delta: Block) -> Cut:
        """The cut that keeps, of the elements with the bin's magnitude, the first `missing` ones."""
        value = float(self._values[bin_])
        if missing == self._counts[bin_]:
            return Cut(value, self.count)
        if self._table is None:
            self._table = self._tabulate(delta)
        ends = np.cumsum(self._table[bin_], dtype=np.int64)
        chunk = int(np.searchsorted(ends, missing))
        rest = missing - (int(ends[chunk - 1]) if chunk else 0)
        start = chunk * _CHUNK
        equal = delta(slice(start, min(start + _CHUNK, self.count))).abs_() == value
        return Cut(value, start + int(np.flatnonzero(equal.cpu().numpy())[rest - 1]) + 1)

    def _tabulate(self, delta: Block) -> np.ndarray:
        """The number of elements by magnitude (rows) and chunk (columns)."""
        columns: list[np.ndarray] = []
        for span in spans(self.count, _TABULATED * _CHUNK):
            codes = _codes(delta(span).abs_())
            counts = [torch.bincount(codes[part], minlength=1 << 15) for part in spans(codes.numel(), _CHUNK)]
            columns += [column.cpu().numpy()[self._bins].astype(np.uint16) for column in counts]
        return np.ascontiguousarray(np.stack(columns, axis=1))

    def _cut_inside(self, bin_: int, missing: int, delta: Block) -> Cut:
        """The cut that keeps the `missing` largest elements of a bin."""
        values, places = [], []
        for span in spans(self.count, _SCANNED):
            size = delta(span).abs_()
            inside = (_codes(size) == int(self._bins[bin_])).nonzero().reshape(-1)
            values.append(size[inside].cpu())
            places.append(inside.cpu() + span.start)
        value, place = torch.cat(values), torch.cat(places)
        threshold = float(torch.kthvalue(value, value.numel() - missing + 1).values)
        rest = missing - int((value > threshold).sum())
        return Cut(threshold, int(place[value == threshold][rest - 1]) + 1)


def _codes(sizes: Tensor) -> Tensor:
    """The bin of each magnitude: its bits (16-bit types), or the upper 16 bits of its float32."""
    if sizes.dtype.itemsize == 2:
        return sizes.view(torch.int16)
    return (sizes.to(torch.float32).view(torch.int32) >> 16).to(torch.int16)


def _histogram(sizes: Tensor) -> np.ndarray:
    """The number of magnitudes in each of the 32,768 bins."""
    counts: np.ndarray = torch.bincount(_codes(sizes), minlength=1 << 15).cpu().numpy()
    return counts


def _values(bins: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The magnitude of each bin: the inverse of `_codes`."""
    codes = torch.from_numpy(bins.astype(np.int16))
    if dtype.itemsize == 2:
        return codes.view(dtype).to(torch.float64).numpy()
    return (codes.to(torch.int32) << 16).view(torch.float32).to(torch.float64).numpy()
