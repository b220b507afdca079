"""Errors and bounds, against textbook values and simulation."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.scoring.stats.standard_errors import (
    effective_size,
    groups,
    normal_quantile,
    pooled_stderr,
    t_quantile,
    weighted_mean_stderr,
    wilson_lower,
    wilson_upper,
)

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=30)


@given(numbers)
def test_with_equal_weights_it_is_the_standard_error_of_the_mean(values: list[float]) -> None:
    expected = statistics.stdev(values) / math.sqrt(len(values))
    assert weighted_mean_stderr(values) == pytest.approx(expected, abs=1e-9)
    assert weighted_mean_stderr(values, [3.0] * len(values)) == pytest.approx(expected, abs=1e-9)


def test_fewer_than_two_items_have_no_error() -> None:
    assert weighted_mean_stderr([]) is None
    assert weighted_mean_stderr([1.0]) is None


def test_the_delta_method_agrees_with_resampling() -> None:
    draw = random.Random(0)
    sizes = [draw.randint(50, 500) for _ in range(400)]
    rates = [2.5 + draw.gauss(0, 0.4) + size / 1000 for size in sizes]
    pairs = list(zip(rates, sizes, strict=True))
    means = []
    for _ in range(800):
        sample = draw.choices(pairs, k=len(pairs))
        means.append(sum(r * s for r, s in sample) / sum(s for _, s in sample))
    assert weighted_mean_stderr(rates, sizes) == pytest.approx(statistics.stdev(means), rel=0.1)


def test_wilson_at_known_points() -> None:
    assert wilson_lower(0, 10, 0.95) == 0.0
    assert wilson_lower(10, 10, 0.95) == pytest.approx(1 / (1 + 1.6448536**2 / 10))
    assert wilson_upper(0, 10, 0.95) == pytest.approx(1 - wilson_lower(10, 10, 0.95))
    assert wilson_lower(81, 263, 0.975) == pytest.approx(0.2553, abs=5e-5)  # Newcombe (1998), table I


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.55, 0.99))
def test_wilson_brackets_the_share(pair: tuple[int, int], confidence: float) -> None:
    k, n = pair
    assert 0 <= wilson_lower(k, n, confidence) <= k / n <= wilson_upper(k, n, confidence) <= 1


def test_pooling() -> None:
    assert pooled_stderr([0.3, 0.4], [1, 1]) == pytest.approx(0.25)
    assert pooled_stderr([0.3, None], [1, 1]) is None
    assert pooled_stderr([0.3], [7]) == pytest.approx(0.3)


# Clusters


@given(numbers)
def test_clusters_of_one_item_change_nothing(values: list[float]) -> None:
    alone = [str(i) for i in range(len(values))]
    assert weighted_mean_stderr(values, clusters=alone) == pytest.approx(weighted_mean_stderr(values))
    assert weighted_mean_stderr(values, clusters=[None] * len(values)) == weighted_mean_stderr(values)


def test_copies_of_an_item_tell_nothing_new() -> None:
    values = [0.1, 0.7, 0.4, 0.9]
    copied = [v for v in values for _ in range(5)]
    names = [str(i) for i in range(len(values)) for _ in range(5)]
    assert weighted_mean_stderr(copied, clusters=names) == pytest.approx(weighted_mean_stderr(values))
    assert weighted_mean_stderr(copied) < 0.5 * weighted_mean_stderr(values)  # type: ignore[operator]


def test_one_cluster_has_no_error() -> None:
    assert weighted_mean_stderr([0.0, 1.0, 1.0], clusters=["a", "a", "a"]) is None


def test_clustered_error_as_published() -> None:
    """Miller (2024): the square is that of the naive error plus the cross products within clusters over n squared. The
    small-sample factor here counts clusters."""
    values, names = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b", "c", "c"]
    mean, n, g = 0.5, 6, 3
    squares = sum((v - mean) ** 2 for v in values)
    cross = sum(
        (values[i] - mean) * (values[j] - mean) for i in range(n) for j in range(n) if i != j and names[i] == names[j]
    )
    expected = math.sqrt(g / (g - 1) * (squares + cross)) / n
    assert weighted_mean_stderr(values, clusters=names) == pytest.approx(expected)


def test_groups_keep_their_order() -> None:
    assert groups(["a", None, "b", "a", None]) == [[0, 3], [1], [2], [4]]


def test_effective_size() -> None:
    def size(share: float, stderr: float | None, clusters: int = 100) -> float:
        return effective_size(share, 100, stderr, clusters, 0.95)

    assert size(0.5, 0.05) == pytest.approx(100)
    assert size(0.5, 0.1) == pytest.approx(25)
    assert size(0.5, 0.01) == 100
    assert size(1.0, 0.0) == 100
    assert size(0.5, None) == 100


def test_few_clusters_tell_less_of_their_error() -> None:
    assert t_quantile(0.95, 5) == pytest.approx(2.0150, abs=1e-4)
    assert t_quantile(0.95, 10**6) == pytest.approx(normal_quantile(0.95), abs=1e-5)
    sizes = [effective_size(1.0, 40, 0.0, clusters, 0.95) for clusters in (2, 3, 10, 40)]
    assert sizes[0] == pytest.approx(40 * (1.6849 / 6.3138) ** 2, rel=1e-3)
    assert sizes == sorted(sizes)
    assert sizes[-1] == 40
