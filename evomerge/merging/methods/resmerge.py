"""ResMerge: the largest direction of each delta apart, the residuals averaged as directions on the sphere (2026,
https://arxiv.org/abs/2606.02252)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import gram
from evomerge.merging.kernels.deltas import combine
from evomerge.merging.kernels.factors import Factors, Wanted, factors
from evomerge.merging.kernels.geometry import Gram
from evomerge.merging.kernels.inputs import Blend, Inputs

_NONE = 1e-6
"""A residual that is shorter, as a share of its delta, is rounding."""

_ROUNDING = 1e-9
"""Residuals of different elements are orthogonal: c is 1 / sqrt(count) then, and rounding must not decide."""


def resmerge(
    inputs: Inputs, *, weight: Sequence[float], rho: float, beta_min: float, beta_max: float, lambda_: float
) -> Blend | Tensor:
    """base + lambda (A + C), of d_i = weight_i (theta_i - base) = H_i + R_i, H_i the largest singular direction.

    With n_i = |R_i|, q_i = R_i / n_i, s the mean cosine of two q_i, q the direction of their sum, and c the mean cosine
    of q and the q_i:

        beta = beta_max - (beta_max - beta_min) (s + c + 2) / 4
        A = c^beta mean(n_i) q; the mean of the R_i, where c is at most 1 / sqrt(number of sources)
        C = rho g |A| H / |H|, H the mean of the H_i, g the mean of max(0, cosine) of two H_i

    A source of weight 0 counts as absent. One alone agrees with itself. Vectors, embeddings and heads: the base plus
    lambda times the mean of the d_i.
    """
    there = [i for i, w in enumerate(weight) if w != 0]
    if not inputs.is_matrix or not there:
        mean = [w / max(1, len(there)) for w in weight]
        return combine(inputs, mean, elect=False, normalize=False, lambda_=lambda_)
    return inputs.by_matrix(lambda m: _merged(m, weight, there, rho, beta_min, beta_max, lambda_))


def _merged(
    inputs: Inputs,
    weight: Sequence[float],
    there: Sequence[int],
    rho: float,
    beta_min: float,
    beta_max: float,
    lambda_: float,
) -> Tensor:
    wanted = Wanted.of("first", inputs.shape, len(inputs))
    heads = [factors(inputs, i, wanted) for i in range(len(inputs))]
    of_residuals = inputs.once("residuals", lambda: gram(_residuals(inputs, heads), inputs.count))
    of_heads = [[_head_product(a, b) for b in heads] for a in heads]
    deltas = inputs.gram(deltas=True)
    short = {i for i in there if of_residuals[i][i] <= _NONE**2 * deltas[i][i]}
    signs = {i: 0.0 if i in short else math.copysign(1.0, float(weight[i])) for i in there}
    # A is the sum of a_i R_i, C that of h_i H_i, of the unweighted parts
    a, length = _residual_numbers(weight, there, signs, of_residuals, beta_min, beta_max)
    agreement = _mean([max(0.0, _cosine(of_heads, i, j, weight)) for i, j in combinations(there, 2)])
    mean = {i: weight[i] / len(there) for i in there}
    size = _root(sum(mean[i] * mean[j] * of_heads[i][j] for i in there for j in there))
    share = rho * agreement * length / size if float(size) > 0 else 0.0
    total = torch.zeros_like(inputs.reference)
    for i in there:
        head = _head(heads[i], slice(None)).to(total)
        total = total + (inputs.delta(i) - head) * a[i] + head * (share * mean[i])
    return inputs.reference + lambda_ * total


def _residual_numbers(
    weight: Sequence[float],
    there: Sequence[int],
    signs: dict[int, float],
    products: Gram,
    beta_min: float,
    beta_max: float,
) -> tuple[dict[int, float], float]:
    """The numbers by which A is the sum of the unweighted residuals, and |A|."""
    count = len(there)
    inverse = {i: signs[i] / math.sqrt(products[i][i]) if signs[i] else 0.0 for i in there}  # q_i = inverse_i R_i
    cosines = {(i, j): inverse[i] * inverse[j] * products[i][j] for i in there for j in there}
    s = _mean([cosines[pair] for pair in combinations(there, 2)])
    size = math.sqrt(max(0.0, sum(cosines.values())))  # of the sum of the q_i
    # The mean cosine of q and the q_i is <q, sum of q_i> / count = |sum of q_i| / count
    c = min(1.0, size / count)
    if count > 1 and c <= (1 + _ROUNDING) / math.sqrt(count):
        a = {i: weight[i] / count for i in there}
        return a, _root(sum(a[i] * a[j] * products[i][j] for i in there for j in there))
    beta = beta_max - (beta_max - beta_min) * (s + c + 2) / 4
    norms = sum(abs(weight[i]) * math.sqrt(products[i][i]) for i in there)
    length = c**beta * norms / count
    return {i: length * inverse[i] / size if size else 0.0 for i in there}, length


def _mean(values: Sequence[float]) -> float:
    """The mean over all pairs; of none, as one source agrees with itself, 1."""
    return sum(values) / len(values) if values else 1.0


def _cosine(products: Gram, i: int, j: int, weight: Sequence[float]) -> float:
    lengths = math.sqrt(products[i][i] * products[j][j])
    sign = math.copysign(1.0, float(weight[i]) * float(weight[j]))
    return sign * products[i][j] / lengths if lengths > 0 else 0.0


def _root(value: float) -> float:
    """The square root of a number that is not below 0 but for rounding, or of a tensor, which autograd follows."""
    return value.clamp_min(0.0).sqrt() if isinstance(value, Tensor) else math.sqrt(max(0.0, value))


def _head_product(a: Factors, b: Factors) -> float:
    """The inner product of two heads: s_a s_b <u_a, u_b> <v_a, v_b>."""
    pairs = [(a.u[:, 0], b.u[:, 0]), (a.v[0], b.v[0])]
    along_u, along_v = (float((x.double() * y.double()).sum()) for x, y in pairs)
    return float(a.s[0]) * float(b.s[0]) * along_u * along_v


def _head(parts: Factors, rows: slice) -> Tensor:
    """Rows of u s v, float32: each element is a product of its own, with no sum."""
    return (parts.u[rows] * parts.s) * parts.v


def _residuals(inputs: Inputs, heads: Sequence[Factors]) -> Callable[[slice], list[Tensor]]:
    """Spans of all deltas without their heads."""
    width = inputs.shape[-1]

    def block(span: slice) -> list[Tensor]:
        first = span.start // width
        rows = slice(first, -(-span.stop // width))
        inside = slice(span.start - first * width, span.stop - first * width)
        deltas = [inputs.delta_span(i, span) for i in range(len(inputs))]
        return [d - _head(h, rows).reshape(-1)[inside].to(d) for d, h in zip(deltas, heads, strict=True)]

    return block
