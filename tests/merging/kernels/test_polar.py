"""Polar factors against the singular value decomposition in float64, and products whose bits no thread moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from evomerge.merging.kernels.polar import polar
from evomerge.merging.kernels.products import product


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_svd(matrix: Tensor, rank: int | None = None) -> Tensor:
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u[:, :rank] @ v[:rank]


def spectrum(rows: int, columns: int, values: Tensor) -> Tensor:
    u, v = torch.linalg.qr(drawn(rows, rows)).Q, torch.linalg.qr(drawn(columns, columns, seed=2)).Q
    return u[:, : len(values)] * values @ v[: len(values)]


@pytest.mark.parametrize("shape", [(2, 2), (40, 24), (24, 40), (90, 90), (2, 300)])
@pytest.mark.parametrize("scale", [1e-20, 1e-4, 1e15])
def test_it_is_that_of_the_decomposition(shape: tuple[int, int], scale: float) -> None:
    matrix = drawn(*shape) * scale
    torch.testing.assert_close(polar(matrix).double(), by_svd(matrix), rtol=0, atol=2e-4)
    exact = polar(matrix.double())
    torch.testing.assert_close(exact, by_svd(matrix), rtol=0, atol=1e-10)


def test_small_directions_count_as_large_ones() -> None:
    matrix = spectrum(50, 70, torch.logspace(0, -3, 50))
    torch.testing.assert_close(polar(matrix).double(), by_svd(matrix), rtol=0, atol=1e-3)


def test_what_a_matrix_does_not_span_stays_0() -> None:
    """The delta of an adapter, say: rounding is not raised to the size of its directions."""
    matrix = drawn(60, 4) @ drawn(4, 50, seed=2)
    torch.testing.assert_close(polar(matrix).double(), by_svd(matrix, 4), rtol=0, atol=2e-3)
    assert not polar(torch.zeros(3, 5)).any()


def test_its_slopes_are_differences() -> None:
    matrix = drawn(6, 9).double().requires_grad_()
    assert torch.autograd.gradcheck(polar, matrix)


@pytest.mark.parametrize("of", [polar, lambda x: product(x, x.T)])
def test_no_thread_moves_a_bit(of: Callable[[Tensor], Tensor]) -> None:
    matrix, before, found = drawn(600, 530), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(of(matrix))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
