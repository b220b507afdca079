"""Decompositions of deltas: exact, sampled, remembered."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.kernels.factors import Factors, Wanted, factor_bytes, factors
from evomerge.merging.kernels.inputs import Inputs


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(50, 80), st.integers(50, 80), st.floats(1e-6, 1e6))
def test_the_sample_finds_all_of_a_low_rank(rank: int, rows: int, columns: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(rank)
    delta = scale * torch.randn(rows, rank, generator=draw) @ torch.randn(rank, columns, generator=draw)
    whole, top = Factors.of(delta), Factors.of(delta, rank)
    assert [part.shape for part in vars(top).values()] == [(rows, rank), (rank,), (rank, columns)]
    torch.testing.assert_close(top.s, whole.s[:rank], rtol=1e-4, atol=0)
    torch.testing.assert_close(top.u * top.s @ top.v, delta, rtol=0, atol=1e-4 * float(whole.s[0]))
    torch.testing.assert_close(top.u.T @ top.u, torch.eye(rank), rtol=0, atol=1e-4)
    torch.testing.assert_close(top.v @ top.v.T, torch.eye(rank), rtol=0, atol=1e-4)


def test_a_sample_of_decaying_directions_is_close() -> None:
    draw = torch.Generator().manual_seed(3)
    u, v = (torch.linalg.qr(torch.randn(100, 100, generator=draw)).Q for _ in range(2))
    exact = 0.9 ** torch.arange(100)
    top = Factors.of(u * exact @ v, 10)
    torch.testing.assert_close(top.s, exact[:10], rtol=1e-3, atol=0)


def test_few_directions_are_not_sampled() -> None:
    """Where a sample would save nothing: the top of the whole decomposition."""
    delta = torch.randn(30, 40, generator=torch.Generator().manual_seed(4))
    whole, top = Factors.of(delta), Factors.of(delta, 5)
    assert torch.equal(top.s, whole.s[:5])
    assert torch.equal(top.u, whole.u[:, :5])
    assert torch.equal(top.v, whole.v[:5])


def test_a_sample_is_drawn_by_nobody_else() -> None:
    """Equal bits after other draws and with other threads, no draw taken from others, no memory of what was dropped."""
    delta = torch.randn(60, 50, generator=torch.Generator().manual_seed(5))
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = Factors.of(delta, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    try:
        torch.set_num_threads(2)
        second = Factors.of(delta.double().T.contiguous().T, 4)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(vars(first).values(), vars(second).values(), strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()
        assert one.untyped_storage().nbytes() == 4 * one.numel()


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
        for i in range(2):
            factors(inputs, i, Wanted())
    assert len(made) == 2
    assert factor_bytes((4, 6), 4) == sum(t.numel() * 4 for t in vars(kept[made[0]]).values())
    assert factor_bytes((6,), 1) == 0


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
    assert [len(factors(inputs, 0, Wanted(top)).s) for top in (None, 2, 3, 2)] == [4, 2, 3, 2]
    assert len(texts) == 3
    factors(Inputs([other], pair[0], kept=kept), 0, Wanted(2))
    factors(Inputs(pair[1:], other, kept=kept), 0, Wanted(2))
    factors(Inputs(pair[1:], pair[0], work=torch.float64, kept=kept), 0, Wanted(2))
    assert len(set(texts)) == len(texts) == 6
    factors(Inputs(pair[1:], pair[0], kept=kept), 0, Wanted(2))
    assert len(set(texts)) == 6
