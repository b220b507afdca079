"""What a gene's `smooth` says: values at neighbouring layers are expected to be alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evomerge.space.vector import Encoding
from evomerge.types import Dimension

Matrix = NDArray[np.float64]

_OWN = 0.3
"""The share of a value's variance that it has by itself: what is not smooth has to be found, too."""


def correlation(dimensions: Sequence[Dimension]) -> Matrix | None:
    """[n, n], the prior correlation of the dimensions' values: exp(-(i - j)² / 2 l²) between layer groups i and j of
    one gene, at the same source and module, where l is its `smooth`; 0 between others. None where no gene is smooth."""
    if not any(d.smooth > 0 for d in dimensions):
        return None
    found = np.eye(len(dimensions))
    for i, first in enumerate(dimensions):
        for j, second in enumerate(dimensions[:i]):
            if first.smooth > 0 and _without_layer(first) == _without_layer(second):
                apart = (int(first.place["layers"]) - int(second.place["layers"])) / first.smooth
                found[i, j] = found[j, i] = (1 - _OWN) * np.exp(-0.5 * apart**2)
    return found


def covariance(encoding: Encoding) -> Matrix | None:
    """[d, d], the same for the coordinates of an encoding: those of choices are correlated with none."""
    between = correlation(encoding.dimensions)
    if between is None:
        return None
    found = np.eye(encoding.size)
    numeric = [i for i, d in enumerate(encoding.dimensions) if not d.choices]
    places = np.array(encoding.numeric_coordinates)
    found[np.ix_(places, places)] = between[np.ix_(numeric, numeric)]
    return found


def smooth_root(encoding: Encoding) -> Matrix | None:
    """[d, d], the symmetric square root of the covariance."""
    matrix = covariance(encoding)
    if matrix is None:
        return None
    values, vectors = np.linalg.eigh(matrix)
    found: Matrix = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    return found


def _without_layer(dimension: Dimension) -> tuple[str, ...]:
    others = (f"{axis} {place}" for axis, place in dimension.place.items() if axis != "layers")
    return (dimension.gene, *others)
