"""Item noise: how far scores move from the search items to the holdout items."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evomerge.errors import Where
from evomerge.files.objects import FloorSpec
from evomerge.scoring.item_noise import ItemNoise, Scored
from evomerge.scoring.slices import SliceInfo, SuiteInfo
from evomerge.scoring.stats.aggregation import ItemMean, MeanKind
from evomerge.scoring.stats.standard_errors import weighted_mean_stderr
from evomerge.types import ItemScore, SliceScore

N, N_HOLDOUT = 40, 60
ABSOLUTE = FloorSpec(where=Where("f.yaml"), value=0.5)
OF_BASE = FloorSpec(where=Where("f.yaml"), of="base", margin=0.0)


def info(floor: FloorSpec | None, n_holdout: int = N_HOLDOUT, sign: int = 1) -> SuiteInfo:
    items = tuple(f"t/{number}" for number in range(N))
    return SuiteInfo(
        {"a": SliceInfo("a", sign, "acc", 1.0, floor, items, ItemMean(MeanKind(sign)), "", n_holdout)}, (("a",),)
    )


def scored(values: np.ndarray, clusters: list[str] | None = None) -> Scored:
    items = {
        f"t/{number}": ItemScore(f"t/{number}", float(value), raw=float(value), cluster=clusters and clusters[number])
        for number, value in enumerate(values)
    }
    stderr = weighted_mean_stderr([float(v) for v in values]) if len(values) > 1 else None
    return Scored({"a": SliceScore(float(values.mean()), stderr, tuple(items.values()))}, {"a": items})


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.6, 0.2, N)


def test_above_a_number_it_is_the_error_of_a_difference_of_two_samples() -> None:
    base, one = scored(draw(0)), scored(draw(1))
    error = ItemNoise(info(ABSOLUTE), {"base": base}).errors(one)["a"]
    assert error == pytest.approx((one.scores["a"].stderr or 0) * math.sqrt(1 + N / N_HOLDOUT))


def test_what_a_candidate_shares_with_its_reference_is_no_noise() -> None:
    base = draw(0)
    noise = ItemNoise(info(OF_BASE), {"base": scored(base)})
    assert noise.errors(scored(base + 0.1))["a"] == pytest.approx(0.0, abs=1e-12)
    apart = np.random.default_rng(2).normal(0, 0.01, N)
    paired = (weighted_mean_stderr(list(apart)) or 0) * math.sqrt(1 + N / N_HOLDOUT)
    assert noise.errors(scored(base + apart))["a"] == pytest.approx(paired)


def test_answers_that_are_all_right_may_be_wrong_on_other_items() -> None:
    right = scored(np.ones(N))
    assert ItemNoise(info(ABSOLUTE), {"base": right}).errors(right)["a"] > 0.02


def test_items_of_a_cluster_move_together() -> None:
    values, clusters = draw(3), [str(number // 4) for number in range(N)]
    grouped = np.repeat(values[::4], 4)
    alone = ItemNoise(info(ABSOLUTE), {"base": scored(grouped)}).errors(scored(grouped))["a"]
    base = scored(grouped, clusters)
    assert ItemNoise(info(ABSOLUTE), {"base": base}).errors(base)["a"] > 1.8 * alone


def test_a_part_of_the_items_stands_for_all() -> None:
    values = draw(4)
    whole = scored(values)
    noise = ItemNoise(info(ABSOLUTE), {"base": whole})
    part = Scored(whole.scores, {"a": dict(list(whole.items["a"].items())[:20])})
    assert noise.errors(part)["a"] == pytest.approx(noise.errors(whole)["a"], rel=0.3)


def test_where_no_items_are_known_the_standard_error_is_taken() -> None:
    base = Scored({"a": SliceScore(0.5, 0.03)}, {})
    noise = ItemNoise(info(OF_BASE), {"base": base})
    one = Scored({"a": SliceScore(0.7, 0.04)}, {})
    assert noise.errors(one)["a"] == pytest.approx(0.05 * math.sqrt(1 + N / N_HOLDOUT))


def test_draws_have_these_errors_and_what_candidates_share() -> None:
    base, one = draw(5), draw(6)
    noise = ItemNoise(info(OF_BASE), {"base": scored(base)})
    candidates = [scored(one), scored(one), scored(base)]
    scores, floors = noise.draws(candidates, 4000, np.random.default_rng(0))
    margins = scores["a"] - floors["a"][:, None]
    assert margins[:, 0].std() == pytest.approx(noise.errors(candidates[0])["a"], rel=0.05)
    assert np.allclose(margins[:, 0], margins[:, 1])
    assert np.allclose(margins[:, 2], 0.0, atol=1e-12)
    again, _ = noise.draws(candidates, 4000, np.random.default_rng(0))
    assert (again["a"] == scores["a"]).all()


def test_the_errors_are_those_of_items_that_are_dealt_again() -> None:
    """A population of 4,000 items, of which 40 are searched and 60 are held out, again and again."""
    generator = np.random.default_rng(7)
    base, one = generator.normal(0.6, 0.2, 4000), generator.normal(0.65, 0.3, 4000)
    moved, errors = [], []
    for _ in range(400):
        order = generator.permutation(4000)[: N + N_HOLDOUT]
        search, holdout = order[:N], order[N:]
        difference = one - base
        moved.append(difference[holdout].mean() - difference[search].mean())
        errors.append(ItemNoise(info(OF_BASE), {"base": scored(base[search])}).errors(scored(one[search]))["a"])
    assert float(np.std(moved)) == pytest.approx(float(np.mean(errors)), rel=0.1)


def test_gaps_shrink_with_the_holdout_items() -> None:
    one = scored(draw(8))
    few = ItemNoise(info(ABSOLUTE, N), {"base": one}).gaps(one, 0.95)["a"]
    many = ItemNoise(info(ABSOLUTE, 4 * N), {"base": one}).gaps(one, 0.95)["a"]
    assert few == pytest.approx(1.645 * (one.scores["a"].stderr or 0), rel=0.01)
    assert many == pytest.approx(few / 2)
