"""Representative items: patterns of the references' answers are strata, and no item stands for more than its part."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.scoring.stats.anchors import Strata, anchors, clusters


def strata(*sizes: int) -> Strata:
    """Items of as many patterns as there are sizes."""
    patterns = [[float(bit) for bit in f"{at:04b}"] for at in range(len(sizes))]
    return Strata.by(np.repeat(patterns, sizes, axis=0))


def even(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


def test_anchors_are_allotted_in_proportion() -> None:
    known = strata(40, 24, 16)
    chosen = anchors(known, even(80), 20)
    assert np.bincount(known.of[chosen]).tolist() == pytest.approx([10, 6, 4], abs=1)


def test_no_anchor_stands_for_half_a_slice() -> None:
    """Sixteen anchors, half of the items alike, the other half of fourteen further patterns."""
    known = strata(42, *([3] * 14))
    found = clusters(known, even(84), np.array(anchors(known, even(84), 16)))
    assert found.shares.max() < 2.5 / 16
    assert found.shares.sum() == pytest.approx(1.0)


def test_fewer_anchors_are_a_prefix_of_more() -> None:
    features = np.random.default_rng(0).integers(0, 2, (60, 3)).astype(float)
    known = Strata.by(features)
    more = anchors(known, even(60), 60)
    assert sorted(more) == list(range(60))
    assert all(anchors(known, even(60), count) == more[:count] for count in (1, 7, 30))


def test_items_of_a_stratum_share_its_weight_equally() -> None:
    known = strata(6, 2)
    found = clusters(known, even(8), np.array([0, 3, 7]))
    assert found.shares == pytest.approx([3 / 8, 3 / 8, 2 / 8])
    assert found.sizes.tolist() == [6, 6, 2]


def test_a_pattern_without_an_anchor_counts_for_the_nearest() -> None:
    known = Strata.by(np.array([[0.0], [0.0], [1.0], [10.0]]))
    found = clusters(known, even(4), np.array([0, 3]))
    assert found.shares == pytest.approx([3 / 4, 1 / 4])


def test_with_graded_items_each_anchor_stands_for_its_neighbours() -> None:
    features = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    known = Strata.by(features)
    chosen = anchors(known, even(6), 2)
    assert [at // 3 for at in sorted(chosen)] == [0, 1]
    assert clusters(known, even(6), np.array(sorted(chosen))).shares == pytest.approx([0.5, 0.5])
