"""Points on a straight line between two well-known models, then finer ones around the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from evomerge.optimize.declarations import SOURCES
from evomerge.optimize.planned import Batches, Planned
from evomerge.space.reference_genomes import sources_of
from evomerge.space.vector import Encoding
from evomerge.types import Dimension, Genome


@dataclass(frozen=True)
class Line:
    """A line from `begin` (at 0) through `end` (at 1), straight on the genes' own scales; choices change halfway."""

    encoding: Encoding
    begin: Genome
    end: Genome

    def at(self, share: float) -> Genome:
        first, last = self.encoding.encode(self.begin), self.encoding.encode(self.end)
        return self.encoding.decode(first + share * (last - first))

    @property
    def edge(self) -> float:
        """The place where the first gene reaches the end of its range; 1 where no number changes."""
        numbers = list(self.encoding.numeric_coordinates)
        first, last = (self.encoding.encode(genome)[numbers] for genome in (self.begin, self.end))
        moving = first != last
        room = np.where(last > first, 1.0 - first, first)[moving]
        return float((room / np.abs(last - first)[moving]).min(initial=np.inf)) if moving.any() else 1.0


class Path(Planned):
    """Proposes `points` of the line, evenly spaced, then halves the gaps beside the best one until they are at most
    `tolerance` times the line's length."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        *,
        points: int = 11,
        begin: str = "base",
        end: str = "uniform",
        reach: float | str = "edge",
        tolerance: float = 0.01,
        **common: Any,
    ) -> None:
        self._points, self._begin, self._end = points, begin, end
        self._reach, self._tolerance = reach, tolerance
        super().__init__(dimensions, seed, **common)

    def _plan(self) -> Batches:
        lines = self._lines()
        if not lines:
            yield [self._initial()]
            return f"the space does not hold the line from {self._begin} to {self._end}"
        scored = [{share: line.at(share) for share in self._shares(line)} for line in lines]
        yield [genome for points in scored for genome in points.values()]
        tops = [self._best(points.values()) for points in scored]
        place = tops.index(self._best(tops))
        line, points = lines[place], scored[place]
        finest = self._tolerance * max(points)
        while new := _between(points, min(points, key=lambda share: self._key(points[share])), finest):
            points.update({share: line.at(share) for share in new})
            yield [points[share] for share in new]
        return f"the line from {self._begin} to {self._end} is scored, around its best point to {self._tolerance:g}"

    def _lines(self) -> list[Line]:
        genomes = {label: reference.genome for label, reference in self.start.references.items()}
        begin = genomes.get(self._begin)
        if begin is None:
            return []
        sources = list(sources_of(self.start.references).values())
        ends = sources if self._end == SOURCES else [genomes[self._end]] if self._end in genomes else []
        return [Line(Encoding(self.dimensions), begin, end) for end in ends if end != begin]

    def _shares(self, line: Line) -> list[float]:
        reach = line.edge if isinstance(self._reach, str) else min(self._reach, line.edge)
        shares: list[float] = np.linspace(0.0, reach, self._points).tolist()
        end_between = min(abs(share - 1.0) for share in shares) > self._tolerance * reach
        return [*shares, *([1.0] if end_between and reach > 1.0 else [])]  # the end's known outcome counts, too


def _between(points: dict[float, Genome], best: float, finest: float) -> list[float]:
    """The middles of the gaps on either side of the best point, as far as they are wider than `finest`."""
    shares = sorted(points)
    place = shares.index(best)
    beside = pairwise(shares[max(0, place - 1) : place + 2])
    return [(low + high) / 2 for low, high in beside if high - low > finest]
