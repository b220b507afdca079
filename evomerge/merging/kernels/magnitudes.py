"""Histograms of a delta's magnitudes, counted once: any density's exact trim threshold is then a lookup.

To keep the k elements of largest magnitude:

1. Find the bin of rank k in the cumulated counts, from the largest magnitude down. A bin is one of the 32,768
   magnitudes of a 16-bit delta, or the upper 16 bits of a float32 magnitude.
2. 16 bits: the threshold is the bin's magnitude. Of the elements equal to it as many are kept as are missing, those of
   lower index first. The first cut of a delta counts them along the delta. For later ones counts per chunk of the
   tensor tell the chunk in which they run out; only that one is read again: few elements, because a mixture of experts
   has thousands of tensors, each with a cut of its own for each source.
3. float32: the elements of the bin are read and sorted by magnitude, equals by index. A small delta is sorted as a
   whole, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import fixed_point, spans
from evomerge.merging.kernels.threads import each

_CHUNKS = 1 << 8, 1 << 13  # the least and the most elements of a chunk: their count fits 16 bits, mostly 4
_SCANNED = 1 << 20  # elements that are looked at together: more memory at a time only costs page faults
_SHARED = 1 << 18  # the same where threads share a tensor

_SORTED = 1 << 15  # elements of a float32 delta that is sorted as a whole: 12 bytes for each are kept

T = TypeVar("T")
Block = Callable[[slice], Tensor]
"""A span of the flat delta, in its own dtype (16 bits, float32 or float64)."""


class _Scan(NamedTuple):
    """Looks for the `rank`-th element (1: the first) of a delta of `n_elements` whose magnitude has a code."""

    delta: Block
    n_elements: int
    code: int
    rank: int

    def position(self) -> int:
        """The index behind that element."""
        before = 0
        for span in spans(self.n_elements, _SHARED):
            codes = _codes(self.delta(span).abs_())
            equal = torch.eq(codes, self.code, out=torch.empty_like(codes))  # into bool takes ten times as long
            here = int(equal.sum())
            if before + here >= self.rank:
                return int(span.start + equal.nonzero()[self.rank - before - 1]) + 1
            before += here
        raise AssertionError("a histogram has counted more elements than there are")


class _Search(NamedTuple):
    """`_Scan`, of one chunk of the delta: that in which it ends by a row of a table."""

    delta: Block
    table: _Table
    row: int
    code: int
    rank: int


class Cut:
    """A set of elements of largest magnitude: above `value`, or equal to it at an index below `position`. The position
    is looked for when it is first asked for; those of several cuts, by `locate`, with less work."""

    def __init__(self, value: float, position: int | _Scan | _Search) -> None:
        self.value, self._position = value, position

    @property
    def position(self) -> int:
        if not isinstance(self._position, int):
            locate([self])
        assert isinstance(self._position, int)
        return self._position


ALL = Cut(-1.0, 0)
NONE = Cut(math.inf, 0)


def locate(cuts: Iterable[Cut]) -> None:
    """Find the positions of cuts."""
    cuts = list(cuts)
    scans = [(cut, cut._position) for cut in cuts if isinstance(cut._position, _Scan)]
    for (cut, _), position in zip(scans, each(lambda pair: pair[1].position(), scans), strict=True):
        cut._position = position
    # 1. The chunk of each by its table
    tables = _grouped((search.table.kind(search.row), (cut, search)) for cut, search in _sought(cuts))
    chunks: list[tuple[int, tuple[Cut, _Search, slice, int]]] = []
    for alike in tables:
        ends = _rows([(search.table, search.row) for _, search in alike]).cumsum(axis=1, dtype=np.int64)
        ranks = np.array([search.rank for _, search in alike])
        numbers = (ends < ranks[:, None]).sum(axis=1)
        before = np.where(numbers > 0, ends[np.arange(len(alike)), numbers - 1], 0)
        for (cut, search), number, rank in zip(alike, numbers.tolist(), (ranks - before).tolist(), strict=True):
            span = search.table.chunk(number)
            chunks.append((span.stop - span.start, (cut, search, span, rank)))
    # 2. The element in the chunk. Codes are compared, not values: comparing 16-bit floats is ten times as slow
    for sought in _grouped(chunks):
        codes = _codes(torch.stack([search.delta(span) for _, search, span, _ in sought]).abs_()).cpu().numpy()
        wanted = np.array([[search.code] for _, search, _, _ in sought], dtype=np.int16)
        equal = (codes == wanted).reshape(-1).nonzero()[0]
        begins = codes.shape[1] * np.arange(len(sought))
        nth = equal.searchsorted(begins) + [rank - 1 for *_, rank in sought]
        for (cut, _, span, _), place in zip(sought, (equal[nth] - begins).tolist(), strict=True):
            cut._position = span.start + place + 1


def _each_span(delta: Block, count: int, act: Callable[[slice], T], length: int = 1) -> list[T]:
    """`act` of the spans of a delta, each but the last of whole chunks of `length`; by several threads on the CPU."""
    shared = delta(slice(0, 0)).device.type == "cpu"
    size = (_SHARED if shared else _SCANNED) // length * length
    cut = spans(count, size)
    return each(act, cut) if shared else [act(span) for span in cut]


def _sought(cuts: Iterable[Cut]) -> Iterator[tuple[Cut, _Search]]:
    """Those that are looked for by a table."""
    return ((cut, cut._position) for cut in cuts if isinstance(cut._position, _Search))


def _grouped(pairs: Iterable[tuple[Hashable, T]]) -> Iterable[list[T]]:
    """The values of each key."""
    groups: dict[Hashable, list[T]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups.values()


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
        total, adding = np.zeros(1 << 15, dtype=np.int64), Lock()

        def add(span: slice) -> tuple[int, float]:
            size = delta(span).abs()
            counts = torch.bincount(_codes(size), minlength=1 << 15).cpu().numpy()
            with adding:
                total[:] += counts
            return (0, 0.0) if self._exact else (int((size == 0).sum()), float(size.max()))

        added = _each_span(delta, count, add)
        zeros, tops = sum(zeros for zeros, _ in added), [0.0, *(top for _, top in added)]
        self.nonzero = count - (int(total[0]) if self._exact else zeros)
        self._bins = np.flatnonzero(total)[::-1]  # from the largest magnitude down
        self._counts = total[self._bins]
        self._cumulated = np.cumsum(self._counts)
        self._values = _values(self._bins, dtype)
        self.largest = float(self._values[0]) if self._exact and count else max(tops)
        self._table: _Table | None = None
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None  # magnitudes, falling, and their places
        self._was_cut = False

    def cut(self, keep: int, delta: Block) -> Cut:
        """The `keep` elements of largest magnitude, exactly; among equals those of lower index."""
        if keep <= 0:
            return NONE
        if keep >= self.count:
            return ALL
        if not self._exact and self.count <= _SORTED:
            return self._cut_sorted(keep, delta)
        bin_ = int(self._cumulated.searchsorted(keep))
        missing = keep - (int(self._cumulated[bin_ - 1]) if bin_ else 0)
        return self._cut_at(bin_, missing, delta) if self._exact else self._cut_inside(bin_, missing, delta)

    def norm(self, keep: int) -> float | None:
        """The sum of the `keep` largest magnitudes, where the counts alone tell it (16-bit deltas)."""
        if not self._exact:
            return None
        taken = np.clip(keep - (self._cumulated - self._counts), 0, self._counts)
        return math.fsum((taken * self._values).tolist())

    def fixed_norm(self, scale: float) -> int | None:
        """The sum of all magnitudes in `fixed_point`, where the counts alone tell it (16-bit deltas)."""
        if not self._exact:
            return None
        sizes = fixed_point(torch.from_numpy(self._values).to(torch.float32), scale)
        return int((sizes.to(torch.int64).numpy() * self._counts).sum())

    def _cut_at(self, bin_: int, missing: int, delta: Block) -> Cut:
        """The cut that keeps, of the elements with the bin's magnitude, the first `missing` ones."""
        value = float(self._values[bin_])
        if missing == self._counts[bin_]:
            return Cut(value, self.count)
        code = int(self._bins[bin_])
        if not self._was_cut:
            self._was_cut = True
            return Cut(value, _Scan(delta, self.count, code, missing))
        if self._table is None:
            length = _chunk_length(len(self._bins))
            self._table = _Table(self._tabulate(delta, length), self.count, length)
        return Cut(value, _Search(delta, self._table, bin_, code, missing))

    def _tabulate(self, delta: Block, length: int) -> np.ndarray:
        """The number of elements by magnitude (rows) and chunk of `length` elements (columns)."""
        n_bins = len(self._bins)
        ranks = np.zeros(1 << 15, dtype=np.int32)
        ranks[self._bins] = np.arange(n_bins)
        rows = torch.from_numpy(ranks).to(delta(slice(0, 0)).device)

        def counts(span: slice) -> np.ndarray:
            codes = _codes(delta(span).abs_())
            # One count over pairs of chunk and magnitude
            cells = rows.index_select(0, codes.to(torch.int32))
            n_whole = codes.numel() // length
            whole, rest = cells[: n_whole * length].view(n_whole, length), cells[n_whole * length :]
            whole += torch.arange(n_whole, dtype=cells.dtype, device=cells.device)[:, None] * n_bins
            rest += n_whole * n_bins
            n_chunks = n_whole + bool(rest.numel())
            found = torch.bincount(cells, minlength=n_chunks * n_bins).view(n_chunks, n_bins)
            tabulated: np.ndarray = found.T.cpu().numpy().astype(np.uint16)
            return tabulated

        return np.concatenate(_each_span(delta, self.count, counts, length), axis=1)

    def _cut_sorted(self, keep: int, delta: Block) -> Cut:
        """The cut of a delta that is sorted as a whole."""
        if self._sorted is None:
            size = delta(slice(0, self.count)).abs_().cpu()
            values, places = size.sort(descending=True, stable=True)
            self._sorted = values.numpy(), places.numpy()
        return Cut(float(self._sorted[0][keep - 1]), int(self._sorted[1][keep - 1]) + 1)

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
    """A table of small counts (uint16): rows in which all fit 8 bits take 8, those in which all fit 4 take 4.

    Attributes:
        count: the number of elements that were counted.
        length: that of a chunk.
    """

    def __init__(self, counts: np.ndarray, count: int, length: int) -> None:
        self.count, self.length, self._columns = count, length, counts.shape[1]
        most = counts.max(axis=1, initial=0)
        self._bits = np.select([most < 16, most < 256], [4, 8], 16).astype(np.uint8)  # of a row's counts
        kept = {bits: counts[self._bits == bits] for bits in (4, 8, 16)}
        self._kinds = {4: _halved(kept[4].astype(np.uint8)), 8: kept[8].astype(np.uint8), 16: kept[16]}
        self._numbers = np.select(
            [self._bits == b for b in (4, 8, 16)], [(self._bits == b).cumsum() - 1 for b in (4, 8, 16)]
        )

    def chunk(self, column: int) -> slice:
        """The elements that a column counts."""
        return slice(column * self.length, min((column + 1) * self.length, self.count))

    def kind(self, row: int) -> tuple[int, int]:
        """Rows of one kind, of several tables, are read together: columns, and bits of a count."""
        return self._columns, int(self._bits[row])


def _rows(places: Sequence[tuple[_Table, int]]) -> np.ndarray:
    """Rows of one kind."""
    columns, bits = places[0][0].kind(places[0][1])
    found = np.stack([table._kinds[bits][table._numbers[row]] for table, row in places])
    return np.concatenate([found & 15, found >> 4], axis=1)[:, :columns] if bits == 4 else found


def _chunk_length(n_bins: int) -> int:
    """A power of two that is no less than the number of magnitudes, so that a table with 4 bits a count takes at most a
    quarter of the memory that a 16-bit source takes. The shorter chunks are, the less is read for a cut."""
    least, most = _CHUNKS
    return min(max(1 << (n_bins - 1).bit_length(), least), most)


def _halved(counts: np.ndarray) -> np.ndarray:
    """Counts below 16, two to a byte: those of the second half of columns in the upper bits."""
    half = -(-counts.shape[1] // 2)
    packed: np.ndarray = counts[:, :half].copy()
    packed[:, : counts.shape[1] - half] |= counts[:, half:] << 4
    return packed


def _codes(sizes: Tensor) -> Tensor:
    """The bin of each magnitude: its bits (16-bit types), or the upper 16 bits of its float32."""
    if sizes.dtype.itemsize == 2:
        return sizes.view(torch.int16)
    return (sizes.to(torch.float32).view(torch.int32) >> 16).to(torch.int16)


def _values(bins: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The magnitude of each bin: the inverse of `_codes`."""
    codes = torch.from_numpy(bins.astype(np.int16))
    if dtype.itemsize == 2:
        return codes.view(dtype).to(torch.float64).numpy()
    return (codes.to(torch.int32) << 16).view(torch.float32).to(torch.float64).numpy()
