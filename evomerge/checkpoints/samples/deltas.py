"""Measures the deltas of fine-tunes on sampled elements: sizes, cosines, conflicts of signs, what nobody changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS
from evomerge.checkpoints.preflight import names_of_base
from evomerge.checkpoints.samples.segments import Drawing, Floats, Reader, draw, draw_rows, is_costly, is_here
from evomerge.checkpoints.samples.sums import Estimate, Sums, TensorSums, estimate, root
from evomerge.checkpoints.structure import is_embedding, is_head
from evomerge.checkpoints.token_ids import shared_rows

DEFAULT = Drawing()
_THREADS = 8
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_COSTLY_TENSORS, _COSTLY_ELEMENTS = 32, 80_000_000
"""Of tensors that must be computed whole (dequantized) so many are read, and none that is larger."""


@dataclass
class Deltas:
    """The sampled deltas of sources of one base.

    Attributes:
        sources: their names, in order.
        tensors: the sums of each compared tensor.
        broken: a model's name -> its tensors in which NaN or Inf was met.
        unread: why tensors were left out -> how many.
    """

    sources: tuple[str, ...]
    tensors: list[TensorSums] = field(default_factory=list)
    broken: dict[str, list[str]] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)

    @cached_property
    def columns(self) -> dict[str, int]:
        return {name: at for at, name in enumerate(_quantities(self.sources))}

    @property
    def sampled(self) -> int:
        """Elements of each model that were read."""
        return sum(tensor.sampled for tensor in self.tensors)

    @property
    def elements(self) -> int:
        """Elements of the compared tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    def of(self, layer: int | None = None, module: str | None = None) -> list[TensorSums]:
        """The tensors of a layer, of a module, or of both."""
        return [
            tensor
            for tensor in self.tensors
            if (layer is None or tensor.layer == layer) and (module is None or tensor.module == module)
        ]

    @property
    def modules(self) -> list[str]:
        """The modules, in the order of the model."""
        return list(dict.fromkeys(tensor.module for tensor in self.tensors))

    @property
    def matrices(self) -> list[TensorSums]:
        """The tensors of two dimensions or more: norms' weights are near 1 in any two models."""
        return [tensor for tensor in self.tensors if tensor.matrix]

    def _ratio(
        self, tensors: Sequence[TensorSums] | None, numerator: str, powers: Mapping[str, float]
    ) -> Estimate | None:
        return estimate(self.tensors if tensors is None else tensors, self.columns, numerator, powers)

    def mean_size(self, source: str, tensors: Sequence[TensorSums] | None = None) -> Estimate | None:
        """Mean |delta| of an element."""
        return self._ratio(tensors, f"size {source}", {"count": -1})

    def relative(self, source: str, tensors: Sequence[TensorSums] | None = None) -> Estimate | None:
        """|delta| / |base|, Euclidean norms."""
        return root(self._ratio(tensors, f"delta2 {source}", {"base2": -1}))

    def changed(self, source: str, tensors: Sequence[TensorSums] | None = None) -> Estimate | None:
        """The share of elements that the source changed."""
        return self._ratio(tensors, f"changed {source}", {"count": -1})

    def with_base(self, source: str) -> Estimate | None:
        """The cosine of source and base, over matrices."""
        return self._ratio(self.matrices, f"with base {source}", {"base2": -0.5, f"source2 {source}": -0.5})

    def cosine(self, one: str, other: str, tensors: Sequence[TensorSums] | None = None) -> Estimate | None:
        """The cosine of two deltas."""
        return self._ratio(tensors, f"inner {one} {other}", {f"delta2 {one}": -0.5, f"delta2 {other}": -0.5})

    def conflict(self, one: str, other: str, tensors: Sequence[TensorSums] | None = None) -> Estimate | None:
        """Of the elements that both changed, the share with opposite signs: a half by chance."""
        return self._ratio(tensors, f"opposed {one} {other}", {f"both {one} {other}": -1})

    def any_conflict(self, tensors: Sequence[TensorSums] | None = None) -> Estimate | None:
        """Of the elements that two sources or more changed, the share that not all of these moved the same way."""
        return self._ratio(tensors, "opposed", {"several": -1})

    def cancelled(self, tensors: Sequence[TensorSums] | None = None) -> Estimate | None:
        """The share of |delta| that is lost where deltas are added: 1 - sum |sum delta| / sum sum |delta|."""
        return self._ratio(tensors, "lost", {"sizes": -1})

    def spread(self, tensors: Sequence[TensorSums] | None = None) -> Estimate | None:
        """The root mean square distance of the sources from their average, relative to the base's norm."""
        return root(self._ratio(tensors, "spread2", {"base2": -1}))

    def untouched(self) -> list[str]:
        """The tensors of which no source changed a sampled element."""
        at = [self.columns[f"changed {source}"] for source in self.sources]
        return [tensor.name for tensor in self.tensors if not tensor.sums[:, at].any()]


def _quantities(sources: Sequence[str]) -> list[str]:
    """The names of the columns of sums."""
    alone = [f"{what} {s}" for s in sources for what in ("size", "delta2", "changed", "with base", "source2")]
    paired = [f"{what} {a} {b}" for a, b in combinations(sources, 2) for what in ("inner", "opposed", "both")]
    return ["count", "base2", *alone, *paired, "opposed", "several", "lost", "sizes", "spread2"]


def measure(
    base: Checkpoint,
    sources: Mapping[str, Checkpoint],
    drawing: Drawing = DEFAULT,
    only: Collection[str] | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Deltas:
    """Samples the deltas of all tensors that base and sources share.

    Args:
        drawing: how much is read of each tensor.
        only: the base's names of the tensors to read; None: all.
        progress: is called with the share that is done.

    Raises:
        InputError: a file is damaged.
    """
    deltas = Deltas(tuple(sources))
    names = {source: names_of_base(base, checkpoint) for source, checkpoint in sources.items()}
    rows = {source: shared_rows(base, checkpoint) for source, checkpoint in sources.items()}
    wanted = list(_comparable(base, sources, names, rows, deltas, only))
    drawing = drawing.for_tensors(len(wanted))
    with Reader() as reader, ThreadPoolExecutor(_THREADS) as pool:

        def measured(name: str) -> TensorSums | None:
            values = _values(reader, base, sources, names, rows, name, drawing)
            return None if values is None else _summed(base, name, values, deltas)

        for done, sums in enumerate(pool.map(measured, wanted), start=1):
            deltas.tensors += [sums] if sums is not None else []
            progress(done / len(wanted))
    return deltas


Names = Mapping[str, tuple[str, tuple[int, ...]]]
RowMap = tuple[NDArray[np.int64], NDArray[np.int64]] | None


def _comparable(
    base: Checkpoint,
    sources: Mapping[str, Checkpoint],
    names: Mapping[str, Names],
    rows: Mapping[str, RowMap],
    deltas: Deltas,
    only: Collection[str] | None,
) -> Iterator[str]:
    """The base's tensors that all models store alike, and on this machine. Notes the others in `deltas.unread`."""
    costly = 0
    for name, info in base.tensors.items():
        if (only is not None and name not in only) or info.dtype not in FLOATS or not info.elements:
            continue
        own = {source: names[source].get(name, (name,))[0] for source in sources}
        why = None
        for source, checkpoint in sources.items():
            stored = checkpoint.tensors.get(own[source])
            if stored is None or stored.dtype not in FLOATS:
                why = "not stored by all models"
            elif stored.shape != info.shape and not (_holds_tokens(name) and rows[source] is not None):
                why = "stored in another shape by some"
        if why is None:
            places = [(base, name), *((sources[s], own[s]) for s in sources)]
            if not all(is_here(*place) for place in places):
                why = "on the hub, of which only headers are read"
            elif any(is_costly(*place) for place in places):
                costly += 1
                if info.elements > _COSTLY_ELEMENTS or costly % max(1, len(base.tensors) // _COSTLY_TENSORS):
                    why = "some of those that must be computed as a whole (quantized) are enough"
        if why is None:
            yield name
        else:
            deltas.unread[why] = deltas.unread.get(why, 0) + 1


def _holds_tokens(name: str) -> bool:
    return is_embedding(name) or is_head(name)


def _values(
    reader: Reader,
    base: Checkpoint,
    sources: Mapping[str, Checkpoint],
    names: Mapping[str, Names],
    rows: Mapping[str, RowMap],
    name: str,
    drawing: Drawing,
) -> tuple[Floats, list[Floats], int] | None:
    """The sampled elements of base and sources, [runs, length], and how many elements they stand for."""
    info = base.tensors[name]
    own = {source: names[source].get(name, (name,))[0] for source in sources}
    if not _holds_tokens(name) or all(rows[source] is None for source in sources):
        runs = draw(name, info.elements, drawing)
        read = [reader.runs(sources[s], own[s], runs.starts, runs.length) for s in sources]
        return reader.runs(base, name, runs.starts, runs.length), read, info.elements
    # Rows of tokens that all models have, each at its place in each model
    height, width = info.shape[0], info.shape[1]
    places = {s: _row_places(rows[s], height, sources[s].tensors[own[s]].shape[0]) for s in sources}
    common = np.flatnonzero(np.min([place >= 0 for place in places.values()], axis=0))
    if not len(common):
        return None
    chosen, columns, length = draw_rows(name, common, width, drawing)
    at = common[chosen]
    read = [reader.runs(sources[s], own[s], places[s][at] * width + columns, length) for s in sources]
    return reader.runs(base, name, at * width + columns, length), read, len(common) * width


def _row_places(rows: RowMap, height: int, theirs: int) -> NDArray[np.int64]:
    """For each row of the base's matrix the row of the same token in the source's; -1 where there is none."""
    places = np.full(height, -1, dtype=np.int64)
    if rows is None:
        both = min(height, theirs)
        places[:both] = np.arange(both)
        return places
    ours, of_source = rows
    inside = (ours < height) & (of_source < theirs)
    places[ours[inside]] = of_source[inside]
    return places


def _summed(base: Checkpoint, name: str, values: tuple[Floats, list[Floats], int], deltas: Deltas) -> TensorSums:
    """The sums over each run."""
    ours, theirs, elements = values
    for model, read in zip(("base", *deltas.sources), (ours, *theirs), strict=True):
        if not np.isfinite(read).all():
            deltas.broken.setdefault(model, []).append(name)
            np.nan_to_num(read, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    place = base.stack.place(name)
    layer = place if isinstance(place, int) else None
    part = name if layer is None else base.stack.part(name)
    return TensorSums(
        name=name,
        layer=layer,
        module=_NUMBER.sub("*", part.removesuffix(".weight")),
        matrix=len(base.tensors[name].shape) > 1,
        elements=elements,
        sampled=ours.size,
        sums=_sums(ours, theirs),
    )


def _sums(base: Floats, sources: Sequence[Floats]) -> Sums:
    """[runs, quantities], in the order of `_quantities`."""

    def total(x: NDArray[np.generic]) -> NDArray[np.float64]:
        return np.asarray(x.sum(axis=1, dtype=np.float64))

    def inner(x: Floats, y: Floats) -> NDArray[np.float64]:
        # float64 sums of float32 products, a row at a time
        return np.asarray(np.einsum("ij,ij->i", x, y, dtype=np.float64))

    moved = [source - base for source in sources]
    sizes = [np.abs(delta) for delta in moved]
    touched = [delta != 0 for delta in moved]
    columns = [np.full(len(base), base.shape[1], dtype=np.float64), inner(base, base)]
    for source, delta, size, changed in zip(sources, moved, sizes, touched, strict=True):
        columns += [total(size), inner(delta, delta), total(changed), inner(source, base), inner(source, source)]
    for i, j in combinations(range(len(moved)), 2):
        both = touched[i] & touched[j]
        opposed = both & ((moved[i] > 0) != (moved[j] > 0))
        columns += [inner(moved[i], moved[j]), total(opposed), total(both)]
    up = np.sum([delta > 0 for delta in moved], axis=0)
    down = np.sum([delta < 0 for delta in moved], axis=0)
    summed, all_sizes = np.sum(moved, axis=0), np.sum(sizes, axis=0)
    mean = summed / len(moved)
    spread = np.mean([inner(delta - mean, delta - mean) for delta in moved], axis=0)
    columns += [total((up > 0) & (down > 0)), total(up + down > 1), total(all_sizes - np.abs(summed)), total(all_sizes)]
    return np.stack([*columns, spread], axis=1)
