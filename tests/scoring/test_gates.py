"""Floors become numbers, in either direction, and candidates are held to them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import InputError
from evomerge.files.objects import FloorSpec
from evomerge.scoring.gates import Gate, feasible, interval, judge, lower_bound, scales, settle, shortfall
from evomerge.scoring.stats.standard_errors import weighted_mean_stderr
from evomerge.types import ItemScore, SliceScore


@dataclass
class Floored:
    sign: int
    floor: FloorSpec | None


def scored(**values: float) -> dict[str, SliceScore]:
    return {name: SliceScore(value, None) for name, value in values.items()}


REFERENCES = {
    "base": scored(acc=0.50, bpb=-2.0),
    "shipping": scored(acc=0.91, bpb=-2.5),
    "refunds": scored(acc=0.80, bpb=-1.6),
}

TABLE = [
    # slice, floor, what it becomes (oriented), how it is told
    ("acc", FloorSpec(value=0.9), 0.9, "0.9"),
    ("bpb", FloorSpec(value=3.0), -3.0, "3"),
    ("acc", FloorSpec(of="base", keep=0.9), 0.45, "0.9 of base 0.5"),
    ("bpb", FloorSpec(of="base", keep=0.8), -2.5, "base 2 / 0.8"),
    ("acc", FloorSpec(of="best_source", keep=1.0), 0.91, "1 of shipping 0.91"),
    ("bpb", FloorSpec(of="best_source", keep=0.8), -2.0, "refunds 1.6 / 0.8"),
    ("acc", FloorSpec(of="refunds", margin=0.05), 0.75, "refunds 0.8 - 0.05"),
    ("bpb", FloorSpec(of="refunds", margin=0.05), -1.65, "refunds 1.6 + 0.05"),
    ("acc", FloorSpec(of="refunds", margin=-0.05), 0.85, "refunds 0.8 + 0.05"),
    ("bpb", FloorSpec(of="refunds", margin=-0.05), -1.55, "refunds 1.6 - 0.05"),
    ("acc", None, None, ""),
]


@pytest.mark.parametrize(("name", "floor", "expected", "text"), TABLE)
def test_a_floor_settles(name: str, floor: FloorSpec | None, expected: float | None, text: str) -> None:
    gate = settle({name: Floored(1 if name == "acc" else -1, floor)}, REFERENCES)[name]
    assert gate.floor == (None if expected is None else pytest.approx(expected))
    assert gate.text == text


@pytest.mark.parametrize(
    ("floor", "sign", "message"),
    [
        (FloorSpec(of="refund", keep=0.9), 1, "'refund', which was not measured; did you mean 'refunds'?"),
        (FloorSpec(of="base", keep=0.9), -1, "the score it refers to is negative .*; give a `margin` instead"),
        (FloorSpec(of="base", keep=0.0), -1, "keep: 0 of a metric where lower is better"),
    ],
)
def test_a_floor_that_cannot_settle(floor: FloorSpec, sign: int, message: str) -> None:
    references = {"base": scored(s=0.5), "refunds": scored(s=0.5)}
    if floor.keep == 0.0:
        references["base"] = scored(s=-0.5)
    with pytest.raises(InputError, match=message):
        settle({"s": Floored(sign, floor)}, references)


def test_candidates_are_judged() -> None:
    gates = settle({"acc": Floored(1, FloorSpec(value=0.8)), "bpb": Floored(-1, FloorSpec(value=2.0))}, REFERENCES)
    scale = scales(REFERENCES, gates)
    assert scale == {"acc": pytest.approx(0.41), "bpb": pytest.approx(0.9)}
    good = judge(scored(acc=0.8, bpb=-1.9), gates, scale, None)
    assert feasible(good)
    assert shortfall(good) == 0.0
    bad = judge(scored(acc=0.595, bpb=-2.45), gates, scale, None)
    assert [v.passed for v in bad] == [False, False]
    assert [v.shortfall for v in bad] == [pytest.approx(0.5), pytest.approx(0.5)]
    assert shortfall(bad) == pytest.approx(1.0)
    assert not feasible(bad)


def test_a_slice_without_a_floor_always_passes() -> None:
    (verdict,) = judge(scored(acc=-99.0), {"acc": Gate("acc", None)}, {}, None)
    assert (verdict.passed, verdict.floor, verdict.shortfall) == (True, None, 0.0)


def test_rounding_is_no_miss_and_nan_is_one() -> None:
    gates = {"acc": Gate("acc", 0.7 - 0.1)}
    assert feasible(judge(scored(acc=0.6), gates, {}, None))
    assert feasible(judge(scored(acc=math.nextafter(0.6, 0)), gates, {}, None))
    assert not feasible(judge(scored(acc=0.599999), gates, {}, None))
    assert not feasible(judge(scored(acc=math.nan), gates, {}, None))


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0.01, 5))
def test_a_gate_passes_exactly_where_nothing_is_missing(value: float, floor: float, scale: float) -> None:
    (verdict,) = judge(scored(s=value), {"s": Gate("s", floor)}, {"s": scale}, None)
    assert verdict.passed == (verdict.shortfall == 0.0)
    assert verdict.passed == (value >= floor - 1e-9 * max(1, abs(floor)))


@pytest.mark.parametrize(
    ("references", "floor", "expected"),
    [
        ({"base": scored(s=0.2), "a": scored(s=0.7)}, 0.5, 0.5),
        ({"base": scored(s=0.5), "a": scored(s=0.5)}, 0.4, 0.4),
        ({"base": scored(s=0.5)}, 0.0, 1.0),
        ({}, None, 1.0),
    ],
)
def test_a_unit_of_shortfall(references: Any, floor: float | None, expected: float) -> None:
    assert scales(references, {"s": Gate("s", floor)}) == {"s": pytest.approx(expected)}


# Confidence


def hits(ones: int, n: int, sign: int = 1) -> SliceScore:
    items = tuple(ItemScore(str(i), float(i < ones)) for i in range(n))
    return SliceScore(sign * ones / n, 0.0, items)


def test_with_confidence_the_lower_bound_is_held_to_the_floor() -> None:
    gates = {"acc": Gate("acc", 0.85)}
    assert feasible(judge({"acc": hits(90, 100)}, gates, {}, None))
    assert not feasible(judge({"acc": hits(90, 100)}, gates, {}, 0.95))
    assert feasible(judge({"acc": hits(900, 1000)}, gates, {}, 0.95))


def test_a_perfect_score_on_few_items_is_not_certain() -> None:
    """The normal bound of 5 hits out of 5 would have no width."""
    assert lower_bound(hits(5, 5), 1, 0.95) == pytest.approx(0.649, abs=1e-3)
    assert lower_bound(hits(0, 5, sign=-1), -1, 0.95) == pytest.approx(-0.351, abs=1e-3)


def test_other_metrics_use_their_standard_error() -> None:
    score = SliceScore(-2.0, 0.1, (ItemScore("a", 1.9, 10.0), ItemScore("b", 2.1, 10.0)))
    assert lower_bound(score, -1, 0.95) == pytest.approx(-2.0 - 0.16449, abs=1e-4)
    assert lower_bound(SliceScore(0.5, None), 1, 0.95) == 0.5


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([1, -1]))
def test_a_bound_never_lies_above_the_score(pair: tuple[int, int], sign: int) -> None:
    score = hits(*pair, sign=sign)
    assert lower_bound(score, sign, 0.9) <= score.value + 1e-12
    assert lower_bound(score, sign, 0.99) <= lower_bound(score, sign, 0.9)


def clustered(values: list[float], size: int, sign: int = 1, named: bool = True) -> SliceScore:
    """`size` neighbours share a cluster."""
    names = [str(i // size) if named else None for i in range(len(values))]
    items = tuple(ItemScore(str(i), v, 1.0, None, c) for i, (v, c) in enumerate(zip(values, names, strict=True)))
    return SliceScore(sign * sum(values) / len(values), weighted_mean_stderr(values, clusters=names), items)


def test_clusters_widen_the_bounds_of_a_share() -> None:
    values = [1.0] * 60 + [0.0] * 20
    alone, together = clustered(values, 1), clustered(values, 5)
    assert lower_bound(alone, 1, 0.95) == pytest.approx(lower_bound(hits(60, 80), 1, 0.95), abs=2e-3)
    assert lower_bound(together, 1, 0.95) < lower_bound(alone, 1, 0.95) - 0.05
    lower = clustered(values, 5, sign=-1)
    assert lower_bound(lower, -1, 0.95) < -0.75 - 0.05


def test_a_bound_counts_clusters_where_all_items_agree() -> None:
    bounds = [lower_bound(clustered([1.0] * 80, size), 1, 0.95) for size in (1, 5, 20, 40)]
    assert bounds[0] == pytest.approx(lower_bound(hits(80, 80), 1, 0.95))
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.7
    assert lower_bound(clustered([1.0] * 80, 80), 1, 0.95) == 0.0
    assert interval(clustered([1.0] * 80, 80), 1) == (0.0, 1.0)


def test_few_clusters_widen_the_bound_of_a_mean() -> None:
    values = [0.1 * (i % 7) for i in range(80)]
    score = clustered(values, 20)
    assert score.stderr is not None
    assert lower_bound(score, 1, 0.95) == pytest.approx(score.value - 2.3534 * score.stderr, abs=1e-4)


def test_intervals_are_in_the_direction_of_the_metric() -> None:
    assert interval(hits(81, 263), 1) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    low, high = interval(hits(5, 10, sign=-1), -1) or (0, 0)
    assert 0 < low < 0.5 < high
    assert interval(SliceScore(-2.0, 0.1), -1) == (pytest.approx(1.804, abs=1e-3), pytest.approx(2.196, abs=1e-3))
    assert interval(SliceScore(0.5, None), 1) is None


@given(st.integers(0, 40), st.sampled_from([1, -1]))
def test_an_interval_is_two_bounds(ones: int, sign: int) -> None:
    score = hits(ones, 40, sign)
    low, high = interval(score, sign, 0.9) or (0, 0)
    assert (low if sign > 0 else -high) == pytest.approx(lower_bound(score, sign, 0.95))


def coverage(share: float, clusters: int, size: int, alike: float, named: bool = True) -> float:
    """How often the 95 % interval of clustered shares holds the true one; `alike`: the chance that an item copies the
    first of its cluster."""
    draw, inside = random.Random(5), 0
    for _ in range(400):
        values: list[float] = []
        for _ in range(clusters):
            first = float(draw.random() < share)
            rest = (first if draw.random() < alike else float(draw.random() < share) for _ in range(size - 1))
            values += [first, *rest]
        low, high = interval(clustered(values, size, named=named), 1) or (0, 0)
        inside += low <= share <= high
    return inside / 400


def test_intervals_cover() -> None:
    assert coverage(0.9, 50, 1, 0.0) >= 0.92
    assert coverage(0.5, 20, 1, 0.0) >= 0.92
    assert coverage(0.7, 40, 5, 0.8) >= 0.91
    assert coverage(0.7, 6, 10, 0.8) >= 0.88
    assert coverage(0.7, 40, 5, 0.8, named=False) < 0.8, "what clusters are for"
