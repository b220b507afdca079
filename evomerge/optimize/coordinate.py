"""One group of genes at a time, in steps that shrink: a pattern search (Hooke & Jeeves 1961, "Direct search")."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from itertools import chain
from typing import Any

from evomerge.optimize.planned import Batches, Planned, gene_groups
from evomerge.space.vector import Encoding
from evomerge.types import Dimension, Genome

_SEPARATE: Mapping[str, Sequence[str]] = {
    "sources": ("sources",),
    "layers": ("layers",),
    "genes": (),
    "each": ("sources", "layers", "modules", "tensors", "bands"),
}
"""`by` -> the axes along which a gene's values move separately."""

Search = Generator[Sequence[Genome], None, Genome]
"""Genomes to score, a batch at a time; returns the best one."""


class Coordinate(Planned):
    """Goes round the groups of genes, from the best known genome. The numbers of a group move up or down together, as
    long as that helps; a choice tries all its options. A round without gain halves the step, until it is below
    `tolerance`."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        *,
        by: str = "sources",
        step: float = 0.2,
        tolerance: float = 0.01,
        **common: Any,
    ) -> None:
        self._groups = gene_groups(dimensions, _SEPARATE[by])
        self._step, self._tolerance = step, tolerance
        self._encoding = Encoding(dimensions)
        numbers = [dimension.key for dimension in dimensions if not dimension.choices]
        self._coordinates = dict(zip(numbers, self._encoding.numeric_coordinates, strict=True))
        super().__init__(dimensions, seed, **common)

    def _plan(self) -> Batches:
        first = self._initial()
        yield [first]
        here = self._best(chain([first], (genome for genome, _ in self.start.known)))
        step = self._step
        while step >= min(self._step, self._tolerance):
            before = here
            for group in self._groups:
                here = yield from (self._choose(here, group) if group[0].choices else self._walk(here, group, step))
            step = step if here != before else step / 2
        return f"no group of genes is better off by a step of {2 * step:.3g}"

    def _choose(self, here: Genome, group: Sequence[Dimension]) -> Search:
        options: list[Genome] = [{**here, **{d.key: option for d in group}} for option in group[0].choices]
        yield options
        return self._best([here, *options])

    def _walk(self, here: Genome, group: Sequence[Dimension], step: float) -> Search:
        """A line search along the group's diagonal: x <- x + way * step, as long as that is better."""
        sides = {way: self._moved(here, group, way * step) for way in (1, -1)}
        yield list(sides.values())
        way = min(sides, key=lambda side: self._key(sides[side]))
        there = sides[way]
        while self._key(there) < self._key(here):
            here, there = there, self._moved(there, group, way * step)
            yield [there]
        return here

    def _moved(self, here: Genome, group: Sequence[Dimension], by: float) -> Genome:
        """The genome with the group's numbers moved by a share of their ranges, each no further than to its end."""
        vector = self._encoding.encode(here)
        for dimension in group:
            vector[self._coordinates[dimension.key]] += by
        moved = self._encoding.decode(vector)
        return {**here, **{dimension.key: moved[dimension.key] for dimension in group}}
