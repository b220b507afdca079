"""Methods by singular directions, against their formulas on decompositions in float64, and by hand."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.testing.methods import merge, run, tensors

SHAPES = [(37, 23), (23, 37), (2, 16, 11)]


def drawn(name: str, shape: tuple[int, ...]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Sources, base, and the deltas in float64."""
    merged, base = tensors(name, shape)
    assert base is not None
    return merged, base, [t.double() - base.double() for t in merged]


def cut(matrix: Tensor, count: int) -> Tensor:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[..., :count] * s[..., None, :count] @ v[..., :count, :]


def found(name: str, merged: list[Tensor], base: Tensor, **values: Any) -> Tensor:
    return merge(name, merged, base, **values).double() - base.double()


class TestRank:
    def test_by_hand(self) -> None:
        """Of diag(3, 2) and diag(1, 4) the larger half is diag(3, 0) and diag(0, 4). Their mean is diag(2, 3), from
        which they differ by diag(1, -1) and diag(-1, 1): nothing is larger there."""
        deltas = [torch.diag(torch.tensor(values)) for values in ([3.0, 2.0], [1.0, 4.0])]
        plain = merge("rank", deltas, torch.zeros(2, 2), weight=[1.0, 0.5], rank=0.5)
        torch.testing.assert_close(plain, torch.diag(torch.tensor([3.0, 2.0])))
        centred = merge("rank", deltas, torch.zeros(2, 2), weight=0.5, rank=0.0, centred=True)
        torch.testing.assert_close(centred, torch.diag(torch.tensor([2.0, 3.0])))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_formula(self, shape: tuple[int, ...]) -> None:
        merged, base, deltas = drawn("rank", shape)
        weight, rank, most = [0.3, -0.5, 0.9], [0.3, 1.0, 0.61], min(shape[-2:])
        counts = [math.ceil(share * most) for share in rank]
        expected = 1.5 * sum(w * 1.2 * cut(d, k) for w, d, k in zip(weight, deltas, counts, strict=True))
        values = {"weight": weight, "rank": rank, "gain": 1.2, "lambda": 1.5}
        torch.testing.assert_close(found("rank", merged, base, **values), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_from_the_mean_it_is_cart(self, shape: tuple[int, ...]) -> None:
        merged, base, deltas = drawn("rank", shape)
        mean, count = sum(deltas) / 3, math.ceil(0.2 * min(shape[-2:]))
        expected = mean + 0.4 * sum(cut(delta - mean, count) for delta in deltas)
        values = {"weight": 1 / 3, "rank": 0.2, "gain": 1.2, "centred": True}
        torch.testing.assert_close(found("rank", merged, base, **values), expected, rtol=0, atol=1e-5)

    def test_all_directions_are_task_arithmetic_bit_for_bit(self) -> None:
        assert torch.equal(run("rank", rank=1.0), run("task_arithmetic"))
        assert torch.equal(run("rank", (48,), rank=0.1), run("task_arithmetic", (48,)))


class TestTsv:
    def test_by_hand(self) -> None:
        """Directions that are orthogonal already stay; one that two sources share goes to both by halves."""
        deltas = [torch.diag(torch.tensor(values)) for values in ([3.0, 1.0], [1.0, 4.0])]
        apart = merge("tsv", deltas, torch.zeros(2, 2), weight=[1.0, 0.5])
        torch.testing.assert_close(apart, torch.diag(torch.tensor([3.0, 2.0])), rtol=0, atol=1e-6)
        shared = merge("tsv", [deltas[0], 3 * deltas[0]], torch.zeros(2, 2), weight=1.0)
        torch.testing.assert_close(shared, torch.diag(torch.tensor([6.0, 0.0])), rtol=0, atol=1e-3)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("part", [1.0, [0.5, 1.0, 0.1]])
    def test_the_formula(self, shape: tuple[int, ...], part: float | list[float]) -> None:
        merged, base, deltas = drawn("tsv", shape)
        weight, most = [0.3, -0.5, 0.9], min(shape[-2:]) // 3
        counts = [max(1, int(share * most)) for share in (part if isinstance(part, list) else [part] * 3)]
        expected = []
        for matrices in zip(*(d.reshape(-1, *shape[-2:]) for d in deltas), strict=True):
            u, s, v = zip(*(torch.linalg.svd(m, full_matrices=False) for m in matrices), strict=True)
            left = torch.cat([x[:, :k] for x, k in zip(u, counts, strict=True)], dim=1)
            right = torch.cat([x[:k] for x, k in zip(v, counts, strict=True)])
            scale = torch.cat([w * x[:k] for w, x, k in zip(weight, s, counts, strict=True)])
            (a, _, b), (c, _, d) = (torch.linalg.svd(m, full_matrices=False) for m in (left, right))
            expected.append(a @ b @ torch.diag(scale) @ c @ d)
        values = {"weight": weight, "part": part, "lambda": 1.5}
        difference = found("tsv", merged, base, **values) - 1.5 * torch.stack(expected).reshape(shape)
        assert float(difference.abs().max()) < 2e-5

    def test_vectors_are_means(self) -> None:
        merged, base, deltas = drawn("tsv", (48,))
        torch.testing.assert_close(found("tsv", merged, base, weight=0.6), 0.2 * sum(deltas), rtol=0, atol=1e-6)


def resmerge(deltas: list[Tensor], weight: list[float], rho: float, low: float, high: float) -> Tensor:
    """The formula, word for word."""
    changes = [w * d for w, d in zip(weight, deltas, strict=True) if w]
    heads = [cut(change, 1) for change in changes]
    rest = [change - head for change, head in zip(changes, heads, strict=True)]
    pairs, count = list(combinations(range(len(changes)), 2)), len(changes)
    n = [r.norm() for r in rest]
    q_i = [r / size for r, size in zip(rest, n, strict=True)]
    s = sum(float((q_i[i] * q_i[j]).sum()) for i, j in pairs) / len(pairs)
    q = sum(q_i) / sum(q_i).norm()
    c = min(1.0, max(0.0, sum(float((q * x).sum()) for x in q_i) / count))
    beta = high - (high - low) * ((s + 1) / 2 + (c + 1) / 2) / 2
    mean = sum(rest) / count
    a = mean if c <= 1 / math.sqrt(count) else c**beta * sum(n) / count * q
    cosines = [float((heads[i] * heads[j]).sum() / heads[i].norm() / heads[j].norm()) for i, j in pairs]
    g = sum(max(0.0, cosine) for cosine in cosines) / len(pairs)
    head = sum(heads) / count
    return a + rho * g * a.norm() * head / head.norm()


class TestResMerge:
    def test_by_hand(self) -> None:
        """Heads diag(4, 0, 0) twice, residuals diag(0, 3, 0) and diag(0, 0, 2): these are orthogonal, so that A is
        their mean diag(0, 1.5, 1), and the heads agree, so that 0.2 |A| goes along them."""
        deltas = [torch.diag(torch.tensor(values)) for values in ([4.0, 3.0, 0.0], [4.0, 0.0, 2.0])]
        expected = torch.diag(torch.tensor([0.2 * math.sqrt(3.25), 1.5, 1.0]))
        torch.testing.assert_close(
            merge("resmerge", deltas, torch.zeros(3, 3), weight=1.0, rho=0.2), expected, rtol=0, atol=1e-5
        )
        """Residuals of one direction, of lengths 3 and 1: c is 1, and A has their mean length."""
        deltas = [torch.diag(torch.tensor(values)) for values in ([4.0, 3.0], [4.0, 1.0])]
        alike = merge("resmerge", deltas, torch.zeros(2, 2), weight=1.0, rho=0.5)
        torch.testing.assert_close(alike, torch.diag(torch.tensor([1.0, 2.0])), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("shape", [(37, 23), (23, 37)])
    @pytest.mark.parametrize("common", [0.0, 1.0])
    @pytest.mark.parametrize("weight", [[0.3, 0.5, 0.9], [0.3, -0.5, 0.9], [0.4, 0.0, 0.7]])
    def test_the_formula(self, shape: tuple[int, ...], common: float, weight: list[float]) -> None:
        """`common`: how much of the same all sources have changed, and so whether directions agree."""
        merged, base, _ = drawn("resmerge", shape)
        same = 0.1 * common * torch.randn(shape, generator=torch.Generator().manual_seed(7))
        merged = [t + same for t in merged]
        deltas = [t.double() - base.double() for t in merged]
        expected = 1.5 * resmerge(deltas, weight, 0.3, 0.6, 0.9)
        values = {"weight": weight, "rho": 0.3, "beta_min": 0.6, "beta_max": 0.9, "lambda": 1.5}
        torch.testing.assert_close(found("resmerge", merged, base, **values), expected, rtol=0, atol=1e-5)

    def test_deltas_that_are_heads_alone_are_merged_to_nothing_but_finite(self) -> None:
        ones = torch.ones(6, 5)
        result = merge("resmerge", [ones, 2 * ones], torch.zeros(6, 5), weight=1.0)
        assert result.isfinite().all()

    def test_no_weight_is_the_base(self) -> None:
        merged, base, _ = drawn("resmerge", (9, 7))
        assert torch.equal(merge("resmerge", merged, base, weight=0.0), base)
