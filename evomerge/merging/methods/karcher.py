"""Karcher mean: the point on the sphere with the least sum of squared angles to the models' directions (Karcher 1977,
Riemannian center of mass and mollifier smoothing; mergekit 0.1.5, merge_methods.karcher)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.kernels.geometry import Gram, inner, length, scaled
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.methods.linear import average

_RESOLVED = 1e-8  # shorter combinations cannot be told from 0 by inner products in float64: the least `tol`


def karcher(inputs: Inputs, *, max_iter: int, tol: float) -> Blend | Tensor:
    """The mean direction of all models, times the mean of their norms. The base is a model like the others; one model
    alone comes back as it is.

    Models with a norm of at most `tol` have no direction: they count for the mean norm only. If there are no others,
    the result is 0.
    """
    if len(inputs) == 1:
        return inputs.tensors[0]
    products = inputs.gram(deltas=False)
    norms = [math.sqrt(row[i]) for i, row in enumerate(products)]
    inverse = [1 / norm if norm > tol else 0.0 for norm in norms]
    mean = _mean(scaled(products, inverse), [i for i, inv in enumerate(inverse) if inv], max_iter, max(tol, _RESOLVED))
    scale = sum(norms) / len(norms)
    return average(inputs, [scale * m * i for m, i in zip(mean, inverse, strict=True)])


def _mean(products: Gram, members: Sequence[int], max_iter: int, tol: float) -> list[float]:
    """The coefficients of the mean of the unit vectors `members`, found by gradient steps on the sphere (Buss and
    Fillmore 2001, Spherical averages and applications to spherical splines, algorithm A1)."""
    number = len(products)
    if not members:
        return [0.0] * number
    # Start: m = sum of x_i / |sum of x_i|
    mean = [1 / len(members) if i in members else 0.0 for i in range(number)]
    size = length(products, mean)
    mean = [m / size for m in mean] if size >= tol else _single(number, members[0])
    for _ in range(max_iter):
        # The tangent u = 1/n sum of log_m(x_i) is the negative gradient of half the mean squared angle
        step = _step(products, members, mean, tol)
        size = length(products, step)
        if size < tol:
            break
        # The step along it: exp_m(u) = cos|u| m + sin|u| u / |u|, brought back to length 1 against rounding
        mean = [math.cos(size) * m + math.sin(size) * s / size for m, s in zip(mean, step, strict=True)]
        norm = length(products, mean)
        mean = [m / norm for m in mean] if norm > tol else mean
    return mean


def _step(products: Gram, members: Sequence[int], mean: Sequence[float], tol: float) -> list[float]:
    """The mean of the tangents at m = `mean` that lead to the members: log_m(x) = theta / sin(theta) (x - cos(theta) m)
    with theta the angle between x and m. Left out are members closer than `tol` to m, and those as close to its
    antipode, to which no direction is the shortest."""
    step = [0.0] * len(products)
    for i in members:
        cosine = max(-1.0, min(1.0, inner(products, _single(len(products), i), mean)))
        theta = math.acos(cosine)
        if theta < tol or math.pi - theta < tol:
            continue
        share = theta / math.sin(theta) / len(members)
        step = [s - share * cosine * m for s, m in zip(step, mean, strict=True)]
        step[i] += share
    return step


def _single(number: int, i: int) -> list[float]:
    """The coefficients of vector `i` itself."""
    return [float(j == i) for j in range(number)]
