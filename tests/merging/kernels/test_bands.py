"""Merging by singular directions, against the formula on whole matrices, and its slopes against differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.merging.kernels import bands
from evomerge.merging.kernels.inputs import Inputs
from evomerge.recipe.bands import Bands

WEIGHTS = (Bands((0.5, -0.5, 1.5)), Bands(tuple(i / 10 for i in range(8))), 0.3)
TOPS = (Bands((0.5, -0.5, 1.5), top=5), Bands((0.2, 0.4, -0.7), (1, 2), top=3), 0.3)


def made(*shape: int) -> Inputs:
    draw = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=draw) for _ in range(4)]
    return Inputs(tensors[1:], tensors[0])


@pytest.fixture(params=[(8, 12), (12, 8)])
def inputs(request: pytest.FixtureRequest) -> Inputs:
    return made(*request.param)


@pytest.fixture(params=[(40, 60), (60, 40)])
def large(request: pytest.FixtureRequest) -> Inputs:
    """Of matrices whose largest directions are sampled."""
    return made(*request.param)


def test_a_merge_is_the_formula(inputs: Inputs) -> None:
    expected = inputs.reference.double()
    for i, weight in enumerate(WEIGHTS):
        delta = inputs.tensors[i].double() - inputs.reference.double()
        if isinstance(weight, Bands):
            u, s, v = torch.linalg.svd(delta, full_matrices=False)
            sizes = torch.tensor(weight.sizes_in(8))
            delta = u @ torch.diag(torch.tensor(weight.values).double().repeat_interleave(sizes) * s) @ v
            expected = expected + delta
        else:
            expected = expected + weight * delta
    torch.testing.assert_close(bands.merged(inputs, WEIGHTS).double(), expected, rtol=0, atol=1e-5)


def test_equal_numbers_are_task_arithmetic(inputs: Inputs) -> None:
    merged = bands.merged(inputs, (Bands((0.25,) * 4), 0.0, Bands((0.5,) * 8)))
    expected = inputs.reference + 0.25 * inputs.delta(0) + 0.5 * inputs.delta(2)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)
    assert torch.equal(bands.merged(inputs, (Bands((0.0,) * 8),) * 3), inputs.reference)


def test_the_rest_is_one_more_band(inputs: Inputs) -> None:
    """Without a sample, the same as full bands of which the last one has all other directions."""
    full = (Bands((0.5, -0.5, 1.5), (2, 3, 3)), Bands((0.2, 0.4, -0.7), (1, 2, 5)), 0.3)
    torch.testing.assert_close(bands.merged(inputs, TOPS), bands.merged(inputs, full), rtol=0, atol=1e-5)
    gradient = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2))
    for found, expected in zip(bands.pull(inputs, TOPS, gradient), bands.pull(inputs, full, gradient), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_number_for_top_and_rest_is_task_arithmetic(large: Inputs) -> None:
    """However good the sample is: the rest is what the top is not."""
    merged = bands.merged(large, (Bands((0.25,) * 3, top=6), Bands((0.0,) * 7, top=6), 0.0))
    assert torch.equal(merged, (large.reference.double() + 0.25 * large.delta(0).double()).float())


@given(st.integers(1, 6), st.integers(50, 80), st.integers(50, 80), st.floats(1e-6, 1e6))
def test_the_sample_finds_all_of_a_low_rank(rank: int, rows: int, columns: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(rank)
    delta = scale * torch.randn(rows, rank, generator=draw) @ torch.randn(rank, columns, generator=draw)
    whole, top = bands.Factors.of(delta), bands.Factors.of(delta, rank)
    assert [part.shape for part in vars(top).values()] == [(rows, rank), (rank,), (rank, columns)]
    torch.testing.assert_close(top.s, whole.s[:rank], rtol=1e-4, atol=0)
    torch.testing.assert_close(top.u * top.s @ top.v, delta, rtol=0, atol=1e-4 * float(whole.s[0]))
    torch.testing.assert_close(top.u.T @ top.u, torch.eye(rank), rtol=0, atol=1e-4)
    torch.testing.assert_close(top.v @ top.v.T, torch.eye(rank), rtol=0, atol=1e-4)


def test_a_sample_of_decaying_directions_is_close() -> None:
    draw = torch.Generator().manual_seed(3)
    u, v = (torch.linalg.qr(torch.randn(100, 100, generator=draw)).Q for _ in range(2))
    exact = 0.9 ** torch.arange(100)
    top = bands.Factors.of(u * exact @ v, 10)
    torch.testing.assert_close(top.s, exact[:10], rtol=1e-3, atol=0)


def test_few_directions_are_not_sampled() -> None:
    """Where a sample would save nothing: the top of the whole decomposition."""
    delta = torch.randn(30, 40, generator=torch.Generator().manual_seed(4))
    whole, top = bands.Factors.of(delta), bands.Factors.of(delta, 5)
    assert torch.equal(top.s, whole.s[:5])
    assert torch.equal(top.u, whole.u[:, :5])
    assert torch.equal(top.v, whole.v[:5])


def test_a_sample_is_drawn_by_nobody_else() -> None:
    """Equal bits after other draws and with other threads, no draw taken from others, no memory of what was dropped."""
    delta = torch.randn(60, 50, generator=torch.Generator().manual_seed(5))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = bands.Factors.of(delta, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    try:
        torch.set_num_threads(2)
        second = bands.Factors.of(delta.double().T.contiguous().T, 4)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(vars(first).values(), vars(second).values(), strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()
        assert one.untyped_storage().nbytes() == 4 * one.numel()


@pytest.mark.parametrize("weights", [WEIGHTS, TOPS])
def test_slopes_are_differences(inputs: Inputs, weights: tuple) -> None:
    slopes_are_differences(inputs, weights)


def test_slopes_of_a_sample_are_differences(large: Inputs) -> None:
    slopes_are_differences(large, TOPS)


def slopes_are_differences(inputs: Inputs, weights: tuple) -> None:
    gradient = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2))
    found = bands.pull(inputs, weights, gradient)

    def loss(moved) -> float:
        return float((bands.merged(inputs, moved).double() * gradient.double()).sum())

    def moved(source: int, band: int, by: float):
        changed = list(weights)
        value = changed[source]
        if isinstance(value, Bands):
            changed[source] = replace(value, values=tuple(v + by * (i == band) for i, v in enumerate(value.values)))
        else:
            changed[source] = value + by
        return changed

    for source, slopes in enumerate(found):
        for band, slope in enumerate(slopes.tolist()):
            difference = (loss(moved(source, band, 0.5)) - loss(moved(source, band, -0.5))) / 1.0
            assert slope == pytest.approx(difference, rel=1e-4, abs=1e-3)


def test_factors_are_remembered() -> None:
    kept: dict = {}
    made = []

    def remember(key, make):
        if key not in kept:
            made.append(key)
            kept[key] = make()
        return kept[key]

    tensors = [torch.randn(4, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for _ in range(2):
        inputs = Inputs(tensors[1:], tensors[0], keys=["base", "a", "b"], remember=remember)
        bands.merged(inputs, (Bands((1.0, 2.0)), Bands((1.0, 2.0))))
    assert len(made) == 2
    assert bands.factor_bytes((4, 6), 4) == sum(t.numel() * 4 for t in vars(kept[made[0]]).values())
    assert bands.factor_bytes((6,), 1) == 0


def test_other_tops_are_other_factors() -> None:
    """They are remembered, and kept, apart; what says all about them differs in what they depend on."""
    texts: list[str] = []

    def kept(text, make):
        texts.append(text)
        return make()

    pair = [torch.randn(4, 6, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    other = pair[1].clone()
    other[0, 0] += 1
    known: dict = {}

    def remember(key, make):
        return known[key] if key in known else known.setdefault(key, make())

    inputs = Inputs(pair[1:], pair[0], keys=["base", "a"], remember=remember, kept=kept)
    assert [len(bands.factors(inputs, 0, top).s) for top in (None, 2, 3, 2)] == [4, 2, 3, 2]
    assert len(texts) == 3
    bands.factors(Inputs([other], pair[0], kept=kept), 0, 2)
    bands.factors(Inputs(pair[1:], other, kept=kept), 0, 2)
    bands.factors(Inputs(pair[1:], pair[0], work=torch.float64, kept=kept), 0, 2)
    assert len(set(texts)) == len(texts) == 6
    bands.factors(Inputs(pair[1:], pair[0], kept=kept), 0, 2)
    assert len(set(texts)) == 6
