"""Every objective in the registry obeys the same rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import TrialError
from evomerge.registry import OBJECTIVES, load

scores = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 10.0), min_size=1)
weighted = scores.flatmap(lambda s: st.tuples(st.just(s), st.fixed_dictionaries({k: st.floats(0.1, 5) for k in s})))


@pytest.fixture(scope="module", params=sorted(OBJECTIVES))
def objective(request: pytest.FixtureRequest) -> Any:
    return load(OBJECTIVES[request.param])


@given(pair=weighted)
def test_it_lies_between_the_worst_and_the_best_slice(objective: Any, pair: Any) -> None:
    s, w = pair
    assert min(s.values()) - 1e-9 <= objective(s, w) <= max(s.values()) + 1e-9


@given(pair=weighted, factor=st.floats(0.1, 10))
def test_only_the_proportion_of_the_weights_counts(objective: Any, pair: Any, factor: float) -> None:
    s, w = pair
    assert objective(s, {k: v * factor for k, v in w.items()}) == pytest.approx(objective(s, w))


@given(pair=weighted, gain=st.floats(0.01, 5), index=st.integers(0, 5))
def test_a_better_slice_makes_nothing_worse(objective: Any, pair: Any, gain: float, index: int) -> None:
    s, w = pair
    name = sorted(s)[index % len(s)]
    assert objective({**s, name: s[name] + gain}, w) >= objective(s, w) - 1e-12


@given(pair=weighted)
def test_the_order_of_the_slices_does_not_count(objective: Any, pair: Any) -> None:
    s, w = pair
    assert objective(dict(reversed(s.items())), w) == objective(s, w)


@given(pair=weighted, other=st.floats(0.01, 10))
def test_a_slice_of_weight_0_is_a_gate_only(objective: Any, pair: Any, other: float) -> None:
    s, w = pair
    assert objective({**s, "gate": other}, {**w, "gate": 0.0}) == objective(s, w)


def test_without_any_weight_there_is_no_objective(objective: Any) -> None:
    with pytest.raises(ValueError, match="no slice has a weight above 0"):
        objective({"a": 1.0}, {"a": 0.0})


def test_values() -> None:
    s, w = {"a": 0.2, "b": 0.8}, {"a": 3.0, "b": 1.0}
    assert load(OBJECTIVES["mean"])(s, w) == pytest.approx(0.5)
    assert load(OBJECTIVES["weighted_mean"])(s, w) == pytest.approx(0.35)
    assert load(OBJECTIVES["geometric_mean"])(s, w) == pytest.approx((0.2**3 * 0.8) ** 0.25)
    assert load(OBJECTIVES["geometric_mean"])({"a": 0.0, "b": 1.0}, {}) == 0.0
    assert load(OBJECTIVES["min"])(s, w) == 0.2
    assert load(OBJECTIVES["mean"])({"a": -2.871, "b": 0.5}, {}) == pytest.approx(-1.1855)


def test_a_negative_score_has_no_geometric_mean() -> None:
    with pytest.raises(TrialError, match="b is -2"):
        load(OBJECTIVES["geometric_mean"])({"a": 1.0, "b": -2.0}, {})
    assert math.isfinite(load(OBJECTIVES["geometric_mean"])({"a": 1.0}, {}))
