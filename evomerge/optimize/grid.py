"""A full factorial: every combination of a few values of every gene."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, islice, product
from typing import Any

import numpy as np

from evomerge.optimize.base import identity
from evomerge.optimize.planned import Batches, Planned, gene_groups
from evomerge.space.vector import Encoding
from evomerge.types import Dimension, Genome, Value

_BATCH = 16
"""Points that are asked, and race, at a time."""

_MOST = 256
"""With `tie: auto` a larger grid is tied over layers and modules."""

_LISTED = 100_000
"""Points of a larger grid are drawn one by one, instead of listed and shuffled."""

_SEPARATE: Mapping[str, Collection[str]] = {
    "none": ("sources", "layers", "modules", "tensors", "bands"),
    "layers": ("sources", "modules"),
    "modules": ("sources", "layers"),
    "layers+modules": ("sources",),
    "all": (),
}
"""`tie` -> the axes along which a gene keeps separate values."""

Factor = list[dict[str, Value]]
"""The settings of tied dimensions, each a part of a genome."""


class Grid(Planned):
    """Proposes the initial genome, then all points of the grid in random order, so that a grid that is cut off is still
    spread.

    A number takes `levels` values, even on its scale, both ends among them; a choice all its options.
    """

    def __init__(
        self, dimensions: Sequence[Dimension], seed: int, *, levels: int = 3, tie: str = "auto", **common: Any
    ) -> None:
        self._factors = _factors(dimensions, levels, tie)
        self._size = math.prod(len(factor) for factor in self._factors)
        super().__init__(dimensions, seed, **common)

    def _plan(self) -> Batches:
        points = chain([self._initial()], self._points())
        new = (point for point in points if identity(point) not in self._outcomes)
        while batch := list(islice(new, _BATCH)):
            yield batch
        return f"all {self._size} points of the grid are scored"

    def _points(self) -> Iterator[Genome]:
        for setting in self._settings():
            values = {key: value for part in setting for key, value in part.items()}
            yield {d.key: values[d.key] for d in self.dimensions}

    def _settings(self) -> Iterator[Sequence[dict[str, Value]]]:
        """Every combination of the factors' settings once."""
        generator = self._generator(0)
        if self._size <= _LISTED:
            combinations = list(product(*self._factors))
            yield from (combinations[number] for number in generator.permutation(self._size))
            return
        counts, seen = [len(factor) for factor in self._factors], set[tuple[int, ...]]()
        while len(seen) < self._size:
            drawn = tuple(generator.integers(counts).tolist())
            if drawn not in seen:
                seen.add(drawn)
                yield [factor[number] for factor, number in zip(self._factors, drawn, strict=True)]


def _factors(dimensions: Sequence[Dimension], levels: int, tie: str) -> list[Factor]:
    if tie != "auto":
        return [_settings(group, levels) for group in gene_groups(dimensions, _SEPARATE[tie])]
    free = _factors(dimensions, levels, "none")
    fits = math.prod(len(factor) for factor in free) <= _MOST
    return free if fits else _factors(dimensions, levels, "layers+modules")


def _settings(group: Sequence[Dimension], levels: int) -> Factor:
    """The settings of dimensions that share one value (one level, where their ranges differ)."""
    columns = [_values(dimension, levels) for dimension in group]
    keys = [dimension.key for dimension in group]
    return [dict(zip(keys, row, strict=True)) for row in dict.fromkeys(zip(*columns, strict=True))]


def _values(dimension: Dimension, levels: int) -> list[Value]:
    if dimension.choices:
        return list(dimension.choices)
    scale = Encoding([dimension])
    return [scale.decode(np.array([share]))[dimension.key] for share in np.linspace(0.0, 1.0, levels)]
