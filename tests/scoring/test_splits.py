"""Items are dealt by their content: stable, disjoint, near the share."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evomerge.scoring.splits import deal, deal_all, item_key, labels, position

documents = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=8)), max_size=40)
shares = st.floats(0.05, 0.95)


@given(documents, st.integers(0, 9), shares, st.integers(1, 20) | st.none())
def test_every_item_falls_on_one_side_and_the_cap_only_removes(
    items: list[Any], seed: int, share: float, cap: int | None
) -> None:
    keys = [item_key(item) for item in items]
    dealt = deal_all({"task": keys}, seed, share, cap)
    search, holdout = (dealt.indices(side, "task") for side in ("search", "holdout"))
    assert not set(search) & set(holdout)
    assert dealt.indices("all", "task") == list(range(len(items)))
    for side, chosen in (("search", search), ("holdout", holdout)):
        expected = [i for i, key in enumerate(keys) if deal(key, "task", seed, share) == side]
        assert set(chosen) <= set(expected)
        assert len(chosen) == (len(expected) if cap is None else min(cap, len(expected)))


@given(documents, st.integers(0, 9), shares, st.integers(1, 20), st.randoms(use_true_random=False))
def test_the_order_of_the_file_changes_nothing(
    items: list[Any], seed: int, share: float, cap: int, draw: random.Random
) -> None:
    def chosen(order: list[Any]) -> list[list[str]]:
        keys = [item_key(item) for item in order]
        dealt = deal_all({"task": keys}, seed, share, cap)
        return [sorted(keys[i] for i in dealt.indices(side, "task")) for side in ("search", "holdout")]

    shuffled = list(items)
    draw.shuffle(shuffled)
    assert chosen(items) == chosen(shuffled)


@given(documents, st.dictionaries(st.text(max_size=5), st.integers()), shares)
def test_a_new_item_moves_no_other(items: list[Any], new: Any, share: float) -> None:
    def sides(rows: list[Any]) -> dict[str, str]:
        return {item_key(row): deal(item_key(row), "task", 0, share) for row in rows}

    before, after = sides(items), sides([new, *items])
    assert all(after[key] == side for key, side in before.items())


def test_the_share_is_kept_roughly_and_tasks_and_seeds_deal_differently() -> None:
    keys = [item_key({"n": i}) for i in range(10_000)]
    for share in (0.1, 0.5, 0.8):
        part = sum(deal(key, "task", 0, share) == "search" for key in keys) / len(keys)
        assert abs(part - share) < 0.02
    first = [deal(key, "task", 0, 0.5) for key in keys]
    for other in ([deal(key, "other", 0, 0.5) for key in keys], [deal(key, "task", 1, 0.5) for key in keys]):
        agree = sum(a == b for a, b in zip(first, other, strict=True)) / len(keys)
        assert abs(agree - 0.5) < 0.03


def test_copies_of_a_document_stay_together_and_keep_their_names_apart() -> None:
    keys = [item_key({"text": "same"})] * 5 + [item_key({"text": "other"})]
    dealt = deal_all({"task": keys}, 0, 0.5)
    sides = [set(dealt.indices(side, "task")) for side in ("search", "holdout")]
    assert any({0, 1, 2, 3, 4} <= side for side in sides)
    assert len(set(labels(keys))) == 6


def test_an_item_is_its_content() -> None:
    assert item_key({"a": 1, "b": [1, 2]}) == item_key({"b": [1, 2], "a": 1})
    assert item_key({"a": 1}) != item_key({"a": "1"})
    assert item_key({"a": b"\x00"}) != item_key({"a": b"\x01"})
    item_key({"a": "\ud800"})  # half a surrogate pair, as broken data has it


def test_the_deal_is_the_same_forever() -> None:
    """A changed hash would move holdout items into the search of a resumed run."""
    assert item_key({"b": "é", "a": 1}) == "09ad9fd2fb648cb2f62141215828ea00a62c299db05d20aa9ade2f527a301cc6"
    assert position("abc", "task", 0) == 0.39909681069717706
