"""Two candidates on the same items: known p-values, and tests that keep their promise in simulation."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.scoring.stats.aggregation import MeanKind
from evomerge.scoring.stats.paired import BOOTSTRAP, MCNEMAR, compare, mcnemar, unpaired
from evomerge.types import ItemScore, SliceScore

Scores = dict[str, ItemScore]
MEAN = MeanKind(1)


def items(values: list[float], weights: list[float] | None = None, clusters: list[str] | None = None) -> Scores:
    weights, shared = weights or [1.0] * len(values), clusters or [None] * len(values)
    told = zip(values, weights, shared, strict=True)
    return {f"t/{i}": ItemScore(f"t/{i}", v, w, None, c) for i, (v, w, c) in enumerate(told)}


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [(0, 0, 1.0), (5, 0, 0.0625), (0, 6, 0.03125), (10, 2, 158 / 4096), (4, 4, 1.0), (3, 4, 1.0)],
)
def test_mcnemar_is_the_binomial_test(won: int, lost: int, p: float) -> None:
    assert mcnemar(won, lost) == pytest.approx(p)


def test_mcnemar_of_many_items() -> None:
    z = 1000 / math.sqrt(39_000)
    assert mcnemar(20_000, 19_000) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.05)


def test_shares_are_compared_by_mcnemar() -> None:
    first, second = items([1.0] * 10 + [0.0] * 2 + [1.0] * 88), items([0.0] * 10 + [1.0] * 2 + [1.0] * 88)
    found = compare(MEAN, first, second)
    assert (found.test, found.items) == (MCNEMAR, 100)
    assert found.difference == pytest.approx(0.08)
    assert found.p == pytest.approx(158 / 4096)
    low, high = found.interval or (0, 0)
    assert 0 < low < 0.08 < high


def test_only_common_items_count() -> None:
    first, second = items([1.0, 0.0, 1.0, 1.0]), items([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    del second["t/3"]
    found = compare(MEAN, first, second)
    assert found.items == 3
    assert (found.first, found.second) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert compare(MEAN, first, {}).p is None


def test_equal_candidates_do_not_differ() -> None:
    draw = random.Random(0)
    same = items([draw.random() for _ in range(30)])
    found = compare(MEAN, same, same)
    assert (found.difference, found.interval, found.p) == (0.0, (0.0, 0.0), 1.0)
    shares = compare(MEAN, items([1.0] * 50), items([1.0] * 50))
    assert shares.p == 1.0
    assert shares.interval is not None
    assert shares.interval[0] < 0 < shares.interval[1], "50 items that agree prove no equality"


def test_bytes_are_weights() -> None:
    """Of bits per byte, the long text decides."""
    first, second = items([1.0, 3.0], [1000, 10]), items([1.2, 1.0], [1000, 10])
    found = compare(MeanKind(-1), first, second)
    assert found.first == pytest.approx((1000 + 30) / 1010)
    assert found.difference == pytest.approx((-200 + 20) / 1010)
    assert found.test == BOOTSTRAP


def test_perplexities_are_compared_as_such() -> None:
    first, second = items([math.e**2, math.e**4]), items([math.e, math.e])
    found = compare(MeanKind(-1, logarithmic=True), first, second)
    assert (found.first, found.second) == (pytest.approx(math.e**3), pytest.approx(math.e))


def test_an_interval_without_zero_is_a_small_p() -> None:
    draw = random.Random(3)
    for shift in (0.0, 0.02, 0.05, 0.2):
        values = [draw.random() for _ in range(60)]
        moved = [v + shift + draw.gauss(0, 0.1) for v in values]
        found = compare(MEAN, items(moved), items(values))
        assert found.interval is not None
        assert found.p is not None
        if abs(found.p - 0.05) > 0.003:
            assert (found.interval[0] > 0 or found.interval[1] < 0) == (found.p < 0.05)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_swapping_the_two_turns_the_difference(pairs: list[tuple[float, float]]) -> None:
    first, second = items([a for a, _ in pairs]), items([b for _, b in pairs])
    one, other = compare(MEAN, first, second), compare(MEAN, second, first)
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == other.p
    assert one.interval is not None
    assert other.interval is not None
    assert one.interval[0] == pytest.approx(-other.interval[1], abs=1e-9)


def false_alarms(clustered: bool, named: bool, binary: bool = False) -> float:
    """The share of 200 comparisons of equally good candidates that find a difference at 5 %."""
    draw, found = random.Random(11), 0
    for _ in range(200):
        first: list[float] = []
        second: list[float] = []
        for _ in range(30):
            drift = draw.gauss(0, 1) if clustered else 0.0
            for _ in range(4):
                noise = draw.gauss(0, 0.5)
                second.append(float(noise > 0) if binary else noise)
                other = drift + draw.gauss(0, 0.5)
                first.append(float(other > 0) if binary else noise + other)
        names = [str(i // 4) for i in range(120)] if named else None
        answer = compare(MEAN, items(first, clusters=names), items(second, clusters=names))
        found += answer.p is not None and answer.p < 0.05
    return found / 200


def test_equal_candidates_are_rarely_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.scoring.stats.paired.RESAMPLES", 400)
    assert false_alarms(clustered=False, named=False) <= 0.10
    assert false_alarms(clustered=False, named=False, binary=True) <= 0.08
    assert false_alarms(clustered=True, named=True) <= 0.11
    assert false_alarms(clustered=True, named=False) > 0.2, "clusters matter, so the test above can fail"


def test_scores_that_are_no_mean_are_compared_by_their_errors() -> None:
    found = unpaired(SliceScore(-0.5, 0.03), SliceScore(-0.62, 0.04), -1)
    assert found.difference == pytest.approx(-0.12)
    assert found.p == pytest.approx(math.erfc(0.12 / 0.05 / math.sqrt(2)))
    assert found.interval == (pytest.approx(-0.218, abs=1e-3), pytest.approx(-0.022, abs=1e-3))
    assert unpaired(SliceScore(0.5, None), SliceScore(0.5, 0.1), 1).p is None
