"""Candidates near some parents, as vectors of `space.vector.Encoding`: steps of all sizes, in few genes or in many.

Genes that lie together on an axis (all layers of a source, all sources of a layer) tend to act together, so half of the
steps move such genes by one amount.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evomerge.optimize.gaussian_process import Matrix
from evomerge.space.vector import Encoding

_STEP, _DECADES = 0.3, 2.0
"""The standard deviation of the largest steps, as a share of a gene's range, and by how many powers of ten the smallest
are smaller."""

_MIXED = 0.25
"""The share of the candidates that start between two parents, or beyond them."""


class Mutation:
    """Draws candidates. A choice keeps all its weight on one option."""

    def __init__(self, encoding: Encoding) -> None:
        self._size = encoding.size
        self._numeric = np.array(encoding.numeric_coordinates, dtype=np.intp)
        self._choices = encoding.choice_coordinates
        self._together = _together(encoding)
        self._genes = len(encoding.dimensions)

    def anywhere(self, count: int, generator: np.random.Generator) -> Matrix:
        """[count, d], uniformly distributed."""
        vectors = generator.random((count, self._size))
        for place in self._choices:
            drawn = generator.integers(place.stop - place.start, size=count)
            vectors[:, place] = np.eye(place.stop - place.start)[drawn]
        return vectors

    def around(self, parents: Matrix, count: int, reach: float, generator: np.random.Generator) -> Matrix:
        """[count, d] mutants of `parents` [k, d]; `reach`, at most 1, scales the steps."""
        # x = p + mixed share (q - p) + size * step, for two random parents p and q
        start, other = (parents[generator.integers(len(parents), size=count)] for _ in range(2))
        mutants = start.copy()
        numeric = self._numeric
        mixed = (generator.random(count) < _MIXED)[:, None]
        share = 1.5 * generator.random((count, 1))
        mutants[:, numeric] += np.where(mixed, share * (other - start)[:, numeric], 0.0)
        size = _STEP * reach * 10 ** (-_DECADES * generator.random((count, 1)))
        mutants[:, numeric] += size * self._steps(count, generator)[:, numeric]
        mutants[:, numeric] = np.clip(mutants[:, numeric], 0.0, 1.0)
        self._choose(mutants, other, mixed[:, 0], generator)
        return mutants

    def _steps(self, count: int, generator: np.random.Generator) -> Matrix:
        """[count, d] steps of unit size: a third in single genes, a third in groups of genes, a third in both."""
        kind = generator.integers(3, size=count)
        few = np.minimum(1.0, 2.0 * 10 ** (-generator.random((count, 1)) * np.log10(max(self._size, 2))))
        alone = (kind != 1)[:, None] & (generator.random((count, self._size)) < few)
        steps: Matrix = np.where(alone, generator.standard_normal((count, self._size)), 0.0)
        for group in self._together:
            moved = (kind != 0) & (generator.random(count) < max(0.2, 1 / len(self._together)))
            steps[:, group] += np.where(moved, generator.standard_normal(count), 0.0)[:, None]
        return steps

    def _choose(self, mutants: Matrix, other: Matrix, mixed: NDArray[np.bool_], generator: np.random.Generator) -> None:
        """Changes choices in place: to the other parent's where two are mixed, and to any option now and then."""
        for place in self._choices:
            width = place.stop - place.start
            inherited = mixed & (generator.random(len(mutants)) < 0.5)
            mutants[inherited, place] = other[inherited, place]
            free = generator.random(len(mutants)) < max(0.1, 1.0 / self._genes)
            mutants[free, place] = np.eye(width)[generator.integers(width, size=len(mutants))][free]


def _together(encoding: Encoding) -> list[np.ndarray]:
    """The coordinates of one gene that share a place on an axis, or the gene: each set once, of two or more."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for dimension, place in zip(encoding.dimensions, encoding.places, strict=True):
        if not dimension.choices:
            for at in [(dimension.gene,), *((dimension.gene, *pair) for pair in dimension.place.items())]:
                groups.setdefault(at, []).append(place.start)
    return [np.array(group) for group in dict.fromkeys(map(tuple, groups.values())) if len(group) > 1]
