"""Histograms of a delta's magnitudes, counted once: any density's exact trim threshold is then a lookup.

To keep the k elements of largest magnitude:

1. Find the bin of rank k in the cumulated counts, from the largest magnitude down. A bin is one of the 32,768
   magnitudes of a 16-bit delta, or the upper 16 bits of a float32 magnitude.
2. 16 bits: the threshold is the bin's magnitude. Of the elements equal to it as many are kept as are missing, those of
   lower index first. Counts per chunk of the tensor tell the chunk in which they run out; only that one is read again:
   few elements, because a mixture of experts has thousands of tensors, each with a cut of its own for each source.
3. float32: the elements of the bin are read and sorted by magnitude, equals by index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import spans

_CHUNK = 1 << 13  # elements: their count fits 16 bits, mostly 8
_SCANNED = 1 << 20  # elements that are looked at together: more memory at a time only costs page faults

Block = Callable[[slice], Tensor]
"""A span of the flat delta, in its own dtype (16 bits, float32 or float64)."""


class _Search(NamedTuple):
    """Looks for the `rank`-th element (1: the first) of a span of a delta whose magnitude has a code."""

    delta: Block
    span: slice
    code: int
    rank: int


class Cut:
    """A set of elements of largest magnitude: above `value`, or equal to it at an index below `position`. The position
    is looked for when it is first asked for; those of several cuts, by `locate`, with less work."""

    def __init__(self, value: float, position: int | _Search) -> None:
        self.value, self._position = value, position

    @property
    def position(self) -> int:
        if isinstance(self._position, _Search):
            locate([self])
        assert isinstance(self._position, int)
        return self._position


ALL = Cut(-1.0, 0)
NONE = Cut(math.inf, 0)


def locate(cuts: Iterable[Cut]) -> None:
    """Find the positions of cuts."""
    searches: dict[int, list[tuple[Cut, _Search]]] = {}
    for cut in cuts:
        if isinstance(search := cut._position, _Search):
            searches.setdefault(search.span.stop - search.span.start, []).append((cut, search))
    for length, alike in searches.items():
        # Codes are compared, not values: comparing 16-bit floats is ten times as slow
        codes = _codes(torch.stack([search.delta(search.span) for _, search in alike]).abs_()).cpu().numpy()
        wanted = np.array([[search.code] for _, search in alike], dtype=np.int16)
        equal = (codes == wanted).reshape(-1).nonzero()[0]
        begins = length * np.arange(len(alike))
        ranks = equal.searchsorted(begins) + [search.rank - 1 for _, search in alike]
        for (cut, search), place in zip(alike, (equal[ranks] - begins).tolist(), strict=True):
            cut._position = search.span.start + place + 1


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
        self._table: _Table | None = None

    def cut(self, keep: int, delta: Block) -> Cut:
        """The `keep` elements of largest magnitude, exactly; among equals those of lower index."""
        if keep <= 0:
            return NONE
        if keep >= self.count:
            return ALL
        bin_ = int(self._cumulated.searchsorted(keep))
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
            self._table = _Table(self._tabulate(delta))
        ends = self._table.row(bin_).cumsum(dtype=np.int64)
        chunk = int(ends.searchsorted(missing))
        rank = missing - (int(ends[chunk - 1]) if chunk else 0)
        span = slice(chunk * _CHUNK, min((chunk + 1) * _CHUNK, self.count))
        return Cut(value, _Search(delta, span, int(self._bins[bin_]), rank))

    def _tabulate(self, delta: Block) -> np.ndarray:
        """The number of elements by magnitude (rows) and chunk (columns)."""
        n_bins, parts = len(self._bins), []
        ranks = np.zeros(1 << 15, dtype=np.int64)
        ranks[self._bins] = np.arange(n_bins)
        for span in spans(self.count, _SCANNED // _CHUNK * _CHUNK):
            codes = _codes(delta(span).abs_())
            # One count over pairs of chunk and magnitude
            cells = torch.from_numpy(ranks).to(codes.device)[codes.to(torch.int64)]
            cells += torch.arange(codes.numel(), device=codes.device) // _CHUNK * n_bins
            n_chunks = -(-codes.numel() // _CHUNK)
            counts = torch.bincount(cells, minlength=n_chunks * n_bins).view(n_chunks, n_bins)
            parts.append(counts.T.cpu().numpy().astype(np.uint16))
        return np.concatenate(parts, axis=1)

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


class _Table:
    """A table of small counts (uint16): rows in which all fit 8 bits take 8."""

    def __init__(self, counts: np.ndarray) -> None:
        wide = counts.max(axis=1) > np.iinfo(np.uint8).max
        self._kinds = counts[~wide].astype(np.uint8), counts[wide]
        self._wide = wide
        self._numbers = np.where(wide, wide.cumsum(), (~wide).cumsum()) - 1  # of each row among those of its kind

    def row(self, index: int) -> np.ndarray:
        counts: np.ndarray = self._kinds[int(self._wide[index])][self._numbers[index]]
        return counts


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
