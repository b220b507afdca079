"""Genome <-> vector in the unit cube, for optimizers of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.types import Dimension, Genome, Value

Vector = NDArray[np.float64]

_NEAR_ZERO = 1e-9
"""In a range that spans zero, values closer to it than this share of the range become zero: a cube coordinate
near 0.5 cannot hold six significant digits of them."""


class Encoding:
    """Encodes genomes of `dimensions` as vectors, and decodes them.

    A number takes one coordinate, its range mapped to [0, 1], on a log scale where the dimension says so. A
    choice of k names takes k coordinates, and means the name with the largest one. So no order of the names
    is implied, and only differences within the k coordinates count.
    """

    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        for dimension in dimensions:
            _check(dimension)
        self.dimensions = tuple(dimensions)
        ends = np.cumsum([len(d.choices) or 1 for d in self.dimensions], dtype=int).tolist()
        self.places = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        """The coordinates of each dimension."""
        self.size: int = ends[-1] if ends else 0
        self.choice_coordinates: tuple[slice, ...] = tuple(
            place for d, place in zip(self.dimensions, self.places, strict=True) if d.choices
        )
        """The coordinates of each choice dimension."""
        self.numeric_coordinates: tuple[int, ...] = tuple(
            place.start for d, place in zip(self.dimensions, self.places, strict=True) if not d.choices
        )
        """The coordinate of each numeric dimension."""

    def encode(self, genome: Genome) -> Vector:
        """The vector of a genome; a choice's coordinates are 1 for the chosen name and 0 for the others."""
        vector = np.zeros(self.size)
        for dimension, place in zip(self.dimensions, self.places, strict=True):
            value = dimension.tidy(genome[dimension.key])
            if dimension.choices:
                vector[place.start + dimension.choices.index(str(value))] = 1.0
            else:
                vector[place.start] = _to_unit(dimension, float(value))
        return vector

    def decode(self, vector: Vector) -> Genome:
        """The tidy genome of a vector; coordinates outside the cube mean its nearest face."""
        if vector.shape != (self.size,) or not np.isfinite(vector).all():
            raise ValueError(f"expected {self.size} finite coordinates, got {vector!r}")
        genome: Genome = {}
        for dimension, place in zip(self.dimensions, self.places, strict=True):
            value: Value
            if dimension.choices:
                value = dimension.choices[int(np.argmax(vector[place]))]
            else:
                value = _from_unit(dimension, min(max(float(vector[place.start]), 0.0), 1.0))
            genome[dimension.key] = dimension.tidy(value)
        return genome


def _check(dimension: Dimension) -> None:
    low, high = dimension.low, dimension.high
    if not dimension.choices and not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"{dimension.key}: the range [{low}, {high}] is not a finite, ordered one")
    if dimension.log and not dimension.choices and low <= 0:
        raise ValueError(f"{dimension.key}: a log scale needs low > 0, got {low}")


def _to_unit(dimension: Dimension, value: float) -> float:
    low, high = dimension.low, dimension.high
    if low == high:
        return 0.5
    if dimension.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _from_unit(dimension: Dimension, unit: float) -> float:
    low, high = dimension.low, dimension.high
    if dimension.log:
        value = low * math.pow(high / low, unit)
    else:
        value = low + unit * (high - low)
        if low < 0 < high and abs(value) < _NEAR_ZERO * (high - low):
            value = 0.0
    return min(max(value, low), high)
