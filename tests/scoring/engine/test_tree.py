"""Every window lies whole in one row, every wanted position is scored once, batches keep their bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.scoring.engine import forward
from evomerge.scoring.engine.batches import grouped, lay_out
from evomerge.scoring.engine.encode import Window
from evomerge.scoring.engine.forward import _mask, plain, score
from evomerge.scoring.engine.tree import Limits, Row, pack


@st.composite
def windows(draw: st.DrawFn) -> list[Window]:
    """Windows that grow out of a few common starts, some of them equal, some the start of others."""
    tokens = st.lists(st.integers(0, 5), min_size=1, max_size=8)
    starts = draw(st.lists(tokens, min_size=1, max_size=3))
    made = []
    for _ in range(draw(st.integers(1, 10))):
        ids = draw(st.sampled_from(starts)) + draw(st.lists(st.integers(0, 5), max_size=6))
        targets = draw(st.lists(st.integers(0, 5), min_size=1, max_size=len(ids)))
        made.append(Window(np.array(ids, np.int32), np.array(targets, np.int32)))
    return made


limits = st.builds(
    Limits,
    branches=st.booleans(),
    window=st.sampled_from([4.0, 9.0, float("inf")]),
    times=st.integers(2, 4),
    hidden=st.sampled_from([1, 8, 1000]),
)


def ancestors(row: Row, node: int) -> list[int]:
    return [k for k in range(node + 1) if node < row.ends[k]]


@given(windows(), limits)
def test_every_window_is_a_path_of_its_row(given_: list[Window], limits: Limits) -> None:
    rows = pack(given_, limits)
    assert sorted(number for row in rows for number in row.places) == list(range(len(given_)))
    for row in rows:
        for number, nodes in row.places.items():
            path = ancestors(row, nodes[-1])
            assert [row.tokens[k] for k in path] == given_[number].tokens.tolist()
            assert [row.depths[k] for k in path] == list(range(len(path)))
            assert nodes == path[-len(given_[number].targets) :]


@given(windows(), limits)
def test_rows_keep_their_limits(given_: list[Window], limits: Limits) -> None:
    for row in pack(given_, limits):
        sizes = [len(given_[number].tokens) for number in row.places]
        assert row.longest == max(sizes)
        straight = row.ends == [len(row)] * len(row)
        assert row.branched is not straight
        if row.branched:
            assert limits.branches
            assert row.longest <= limits.window
            assert len(row) <= limits.times * row.longest
        else:
            assert len(row) == row.longest


@given(windows(), limits, st.integers(1, 4))
def test_batches_keep_to_the_positions_of_lm_eval(given_: list[Window], limits: Limits, batch_size: int) -> None:
    rows = pack(given_, limits)
    groups = list(grouped(rows, batch_size))
    assert [row for group in groups for row in group] == rows
    for group in groups:
        positions = len(group) * max(map(len, group))
        assert len(group) == 1 or positions <= batch_size * max(row.longest for row in group)


@given(windows(), limits, st.integers(1, 4))
def test_every_wanted_position_is_scored_once(given_: list[Window], limits: Limits, batch_size: int) -> None:
    layout = lay_out(given_, pack(given_, limits), batch_size)
    scored = []
    for batch in layout.batches:
        assert len(set(batch.where.tolist())) == len(batch.where)
        flat = batch.tokens.flatten()
        here = list(zip(batch.where[batch.node].tolist(), batch.target.tolist(), strict=True))
        assert len(set(here)) == len(here)
        scored += [(int(flat[position]), target) for position, target in here]
    assert {int(pair) for own in layout.pairs for pair in own} == set(range(len(scored)))
    for window, own in zip(given_, layout.pairs, strict=True):
        expected = zip(window.tokens[-len(window.targets) :].tolist(), window.targets.tolist(), strict=True)
        assert [scored[pair] for pair in own] == list(expected)


@given(windows())
def test_equal_windows_and_starts_of_others_cost_nothing(given_: list[Window]) -> None:
    distinct = {tuple(window.tokens.tolist()) for window in given_}
    starts = {ids[:k] for ids in distinct for k in range(1, len(ids) + 1)}
    (row,) = pack(given_ * 2, Limits(True, float("inf"), 100, 10**6)) if _one_root(distinct) else (None,)
    assert row is None or len(row) == len(starts)


def _one_root(distinct: set[tuple[int, ...]]) -> bool:
    return len({ids[0] for ids in distinct}) == 1


@pytest.mark.parametrize("width", [1, 10**6])
def test_joining_must_pay(width: int) -> None:
    """Two windows of 50 tokens that share 10: worth it for a wide model, whose tokens cost more than attention."""
    common, rest = list(range(10)), [[100 + i] * 40 for i in range(2)]
    two = [Window(np.array(common + own, np.int32), np.array([1], np.int32)) for own in rest]
    assert len(pack(two, Limits(True, float("inf"), 16, width))) == (2 if width == 1 else 1)


@settings(max_examples=25, deadline=None)
@given(windows(), st.integers(1, 4), st.booleans())
def test_packed_answers_are_those_of_one_by_one(tiny: Any, given_: list[Window], batch_size: int, trees: bool) -> None:
    layout = lay_out(given_, pack(given_, Limits(trees, float("inf"), max(2, batch_size), 10**6)), batch_size)
    cpu = torch.device("cpu")
    logs, greedy = score(tiny, layout.batches, cpu)
    for window, own in zip(given_, layout.pairs, strict=True):
        assert logs[own].sum() == pytest.approx(plain(tiny, cpu, window), abs=1e-4)
        best = tiny(torch.from_numpy(window.tokens).long()[None]).logits[0, -len(window.targets) :].argmax(-1)
        assert greedy[own].tolist() == (best.numpy() == window.targets).tolist()


def test_padding_is_seen_by_nobody_and_sees_itself(tiny: Any) -> None:
    seen = _mask(torch.tensor([[3, 2, 3, 0]]), tiny)[0, 0]
    assert seen.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_of_equal_logits_the_first_is_greedy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever pieces they are reduced; pairs may stand in any order, several at one position, or none."""
    monkeypatch.setattr(forward, "CHUNK", chunk)
    logits = torch.tensor([[0.0, 0, 0, 0], [0, 2, 2, 0], [9, 9, 9, 9], [3, 0, 0, 4]])
    node, target = torch.tensor([3, 1, 0, 1, 0, 3]), torch.tensor([3, 1, 0, 2, 3, 0])
    logs, best = forward._reduce(logits, node, target)
    assert torch.allclose(logs, logits.log_softmax(-1)[node, target])
    assert best.tolist() == [True, True, True, False, False, False]


@pytest.fixture(scope="module")
def tiny() -> Any:
    from .test_architectures import build

    return build("llama")
