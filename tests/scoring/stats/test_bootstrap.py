"""The bootstrap: fixed draws, whole clusters, and errors that agree with those that are known."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.scoring.stats.bootstrap import aggregate_stderr, counts, mean_stderr
from evomerge.scoring.stats.standard_errors import weighted_mean_stderr

names = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=12)


@given(names)
@settings(max_examples=30)
def test_clusters_are_drawn_whole_and_as_many_as_there_are(clusters: list[str | None]) -> None:
    (drawn,) = counts(clusters, 50)
    assert drawn.shape == (50, len(clusters))
    own = sum(c is None for c in clusters)
    firsts = [clusters.index(c) for c in dict.fromkeys(clusters) if c is not None]
    for column, cluster in enumerate(clusters):
        if cluster is not None:
            assert (drawn[:, column] == drawn[:, clusters.index(cluster)]).all()
    alone = [i for i, c in enumerate(clusters) if c is None]
    assert (drawn[:, firsts + alone].sum(axis=1) == len(firsts) + own).all()


def test_strata_keep_their_sizes() -> None:
    (drawn,) = counts([None] * 9, 40, ["x"] * 3 + ["y"] * 6)
    assert (drawn[:, :3].sum(axis=1) == 3).all()
    assert (drawn[:, 3:].sum(axis=1) == 6).all()
    assert len(np.unique(drawn, axis=0)) > 20


def test_draws_are_the_same_in_blocks_and_touch_no_global_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    state = random.getstate(), np.random.get_state()[1].tolist()
    whole = np.concatenate(list(counts([None] * 7, 60)))
    monkeypatch.setattr("evomerge.scoring.stats.bootstrap._AT_ONCE", 70)
    blocks = list(counts([None] * 7, 60))
    assert len(blocks) == 6
    assert (np.concatenate(blocks) == whole).all()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state


def test_the_bootstrap_of_a_mean_agrees_with_its_error() -> None:
    draw = random.Random(1)
    values = [draw.gauss(2, 0.7) for _ in range(150)]
    weights = [draw.randint(50, 500) * 1.0 for _ in values]
    clusters = [str(i // 3) for i in range(150)]
    for shares, shared in ((weights, clusters), ([1.0] * 150, [None] * 150)):
        known = weighted_mean_stderr(values, shares, shared)
        assert mean_stderr(values, shares, shared, lambda mean: mean) == pytest.approx(known, rel=0.1)
        # The delta method for the exponential of a mean.
        level = math.exp(sum(v * w for v, w in zip(values, shares, strict=True)) / sum(shares))
        assert mean_stderr(values, shares, shared, np.exp) == pytest.approx(known * level, rel=0.1)  # type: ignore[operator]


def test_any_function_of_the_items_has_an_error() -> None:
    draw = random.Random(2)
    values = [draw.gauss(0, 1) for _ in range(200)]
    error = aggregate_stderr(lambda items: sum(items) / len(items), values, [None] * 200)
    assert error == pytest.approx(weighted_mean_stderr(values), rel=0.15)
    median = aggregate_stderr(lambda items: sorted(items)[len(items) // 2], values, [None] * 200)
    assert median == pytest.approx(math.sqrt(math.pi / 2 / 200), rel=0.35)  # of a normal sample
    assert aggregate_stderr(lambda items: sum(items) / len(items), values, [None] * 200) == error


def test_no_error_where_there_is_none_to_be_had() -> None:
    assert mean_stderr([1.0, 2.0], [1.0, 1.0], ["a", "a"], np.exp) is None
    assert aggregate_stderr(sum, [1.0], [None]) is None

    def only_both_kinds(items: list[Any]) -> float:
        return 1.0 / (len(set(items)) - 1)

    assert aggregate_stderr(only_both_kinds, [0, 1], [None, None]) is None
