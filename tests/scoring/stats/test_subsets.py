"""Subsets by what sources score alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from evomerge.scoring.stats.subsets import MOST, SliceGains, subsets

Matrix = NDArray[np.float64]


def gains(*rows: list[float], weight: float = 1.0) -> SliceGains:
    items = np.array(rows, dtype=np.float64)
    shares = np.full(items.shape[1], 1 / items.shape[1])
    return SliceGains(weight, items @ shares, items, shares)


def proposed(*slices: SliceGains) -> dict[str, list[tuple[int, ...]]]:
    found: dict[str, list[tuple[int, ...]]] = {}
    for reason, members in subsets(slices):
        found.setdefault(reason, []).append(members)
    return found


def test_experts_are_the_best_of_each_slice() -> None:
    first, second = gains([3, 1], [0, 1], [1, 1], [-1, -1]), gains([0, 0], [1, 2], [1, 1], [-2, 0])
    assert proposed(first, second)["experts"] == [(0, 1)]
    # a slice on which no source gains has no expert
    assert "experts" not in proposed(first, gains([-1, 0], [-1, -2], [-3, -1], [-2, -2]))


def test_complements_are_those_whose_gains_correlate_least() -> None:
    # source 1 does what the best source does, source 2 what it does not
    slice_ = gains([4, 3, 0, 0], [3, 2, 0, 0], [0, 0, 2, 2], [-1, -1, -1, -1])
    found = proposed(slice_)
    assert found["selected"][0] == (0, 2)  # the same one, proposed once
    assert found["complements"] == [(0, 1, 2)]


def test_a_source_is_selected_for_what_the_others_lack() -> None:
    slice_ = gains([5, 5, 5, 0, 0], [6, 0, 0, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0])
    assert subsets([slice_])[0] == ("selected", (0, 2))


def test_a_slice_counts_by_its_weight_and_in_its_own_unit() -> None:
    one, other = [[100.0, 100], [0, 0], [0, 0]], [[0.0, 0], [0.01, 0], [0, 0.02]]
    found = proposed(gains(*one), gains(*other, weight=5.0))
    assert found["selected"][0] == (1, 2)


def test_useless_sources_are_in_none() -> None:
    generator = np.random.default_rng(0)
    useful = np.abs(generator.normal(size=(3, 30)))
    useless = -np.abs(generator.normal(size=(4, 30)))
    items = np.concatenate([useful, useless])
    found = subsets([gains(*items.tolist())])
    assert 0 < len(found) <= MOST
    assert {i for _, members in found for i in members} <= {0, 1, 2}


@pytest.mark.parametrize(
    "rows", [([1.0, 2], [2.0, 1]), ([0.0, 0], [0.0, 0], [0.0, 0]), ([-1.0, 0], [0.0, -1], [-1, -1])]
)
def test_nothing_is_proposed_where_there_is_nothing_to_choose(rows: tuple[list[float], ...]) -> None:
    assert subsets([gains(*rows)]) == []
    assert subsets([]) == []
