"""All items give the score; a part leaves some scores possible, and predicts the whole."""

from __future__ import annotations

import math
import pickle
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import TrialError
from evomerge.scoring.gates import lower_bound
from evomerge.scoring.stats.aggregation import (
    FORMULAS,
    Formula,
    ItemMean,
    ItemWeights,
    MeanKind,
    TaskMean,
    pooled_value,
)
from evomerge.scoring.stats.anchors import Strata
from evomerge.scoring.stats.forecast import Forecaster
from evomerge.types import ItemScore, SliceScore

RIGHT_OR_WRONG = MeanKind(1, best=1.0, worst=0.0)
BITS = MeanKind(-1, best=0.0)
PERPLEXITY = MeanKind(-1, logarithmic=True, best=1.0)


def items(scores: list[float], sizes: list[float] | None = None) -> dict[str, ItemScore]:
    shares = sizes or [1.0] * len(scores)
    return {f"t/{k}": ItemScore(f"t/{k}", s, w) for k, (s, w) in enumerate(zip(scores, shares, strict=True))}


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_the_ceiling_of_shares_is_never_passed(right: list[bool], data: st.DataObject) -> None:
    """Whatever comes of the items to go, neither the score nor its confidence bound is above the best case."""
    every = items([float(r) for r in right])
    seen = data.draw(st.sets(st.sampled_from(sorted(every))))
    item_weights = ItemWeights.of(RIGHT_OR_WRONG, every.values())
    best = item_weights.best_case({name: every[name] for name in seen})
    value = item_weights.value(item_weights.units(every))
    assert value <= best.value + 1e-12
    assert math.isclose(value, sum(right) / len(right), abs_tol=1e-12)
    whole = SliceScore(value, None, tuple(every.values()))
    assert lower_bound(whole, 1, 0.95) <= lower_bound(best, 1, 0.95) + 1e-12


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(1.0, 500.0)), min_size=1, max_size=30), st.data())
def test_the_ceiling_of_bits_per_byte_is_never_passed(pairs: list[tuple[float, float]], data: st.DataObject) -> None:
    every = items([bits for bits, _ in pairs], [size for _, size in pairs])
    seen = data.draw(st.sets(st.sampled_from(sorted(every))))
    item_weights = ItemWeights.of(BITS, every.values())
    value = item_weights.value(item_weights.units(every))
    assert value <= item_weights.ceiling(item_weights.units({name: every[name] for name in seen})) + 1e-9


@given(st.lists(st.floats(1.0, 1e6), min_size=2, max_size=20))
def test_a_perplexity_is_the_exponential_of_a_mean(scores: list[float]) -> None:
    every = items(scores)
    item_weights = ItemWeights.of(PERPLEXITY, every.values())
    expected = -math.exp(sum(map(math.log, scores)) / len(scores))
    assert math.isclose(item_weights.value(item_weights.units(every)), expected, rel_tol=1e-9)
    first = dict(list(every.items())[:1])
    assert expected <= item_weights.ceiling(item_weights.units(first)) * (1 - 1e-12)


def test_an_unknown_range_leaves_everything_possible() -> None:
    every = items([0.3, 0.9, 0.1])
    item_weights = ItemWeights.of(MeanKind(1), every.values())
    assert item_weights.ceiling(item_weights.units({"t/0": every["t/0"]})) == math.inf
    assert math.isclose(item_weights.ceiling(item_weights.units(every)), 1.3 / 3)


def test_leaves_that_count_equally() -> None:
    scores = {"a/1": 1.0, "b/1": 0.0, "b/2": 0.0, "b/3": 0.0}
    every = {name: ItemScore(name, s) for name, s in scores.items()}
    for by_size, expected in ((True, 0.25), (False, 0.5)):
        item_weights = ItemWeights.of(MeanKind(1, by_size=by_size), every.values())
        assert math.isclose(item_weights.value(item_weights.units(every)), expected)


def test_predictions_are_unbiased_and_their_errors_honest() -> None:
    """Random items of many made-up candidates: the true score lies within two standard errors as often as it should."""
    draw = np.random.default_rng(1)
    inside, errors = [], []
    for _ in range(300):
        control = draw.normal(2.0, 0.5, size=120)
        candidate = control + draw.normal(0.1, 0.2, size=120)
        every = items(list(candidate))
        item_weights = ItemWeights.of(MeanKind(1), every.values())
        seen = draw.permutation(120)[:30]
        units = np.full((1, 120), np.nan)
        units[0, seen] = candidate[seen]
        forecast = Forecaster(item_weights, None).forecast(units, control)
        error = float(forecast.mean[0] - candidate.mean())
        errors.append(error)
        inside.append(abs(error) <= 2 * math.sqrt(forecast.covariance[0, 0]))
    assert abs(np.mean(errors)) < 0.01
    assert 0.92 <= np.mean(inside) <= 0.985


def test_a_prediction_from_all_items_is_the_score() -> None:
    draw = np.random.default_rng(2)
    candidate, control = draw.normal(size=(2, 20))
    item_weights = ItemWeights.of(MeanKind(1), items(list(candidate)).values())
    for strata in (None, Strata.by(draw.normal(size=(20, 3)))):
        forecast = Forecaster(item_weights, strata).forecast(candidate[None], control)
        assert math.isclose(forecast.mean[0], candidate.mean(), abs_tol=1e-12)
        assert forecast.covariance[0, 0] == 0.0


def test_candidates_that_met_the_same_items_are_predicted_together() -> None:
    """Two that differ by a constant are told apart by few items, however hard these are."""
    draw = np.random.default_rng(3)
    control = draw.normal(0.0, 1.0, size=100)
    one = control + draw.normal(0.0, 1.0, size=100)
    units = np.full((2, 100), np.nan)
    seen = np.arange(10)
    units[0, seen], units[1, seen] = one[seen], one[seen] + 0.05
    item_weights = ItemWeights.of(MeanKind(1), items(list(one)).values())
    forecast = Forecaster(item_weights, None).forecast(units, control)
    c = forecast.covariance
    assert math.isclose(forecast.mean[1] - forecast.mean[0], 0.05)
    assert c[0, 0] + c[1, 1] - 2 * c[0, 1] < 1e-12 < c[0, 0]
    drawn = forecast.draws(100, np.random.default_rng(0))
    assert (drawn[:, 1] > drawn[:, 0]).all()


def test_a_few_equal_answers_are_no_certainty() -> None:
    control = np.ones(50)
    units = np.full((1, 50), np.nan)
    units[0, :8] = 1.0
    item_weights = ItemWeights.of(RIGHT_OR_WRONG, items([1.0] * 50).values())
    forecast = Forecaster(item_weights, None).forecast(units, control)
    assert 0.05 < math.sqrt(forecast.covariance[0, 0]) < 0.15


# Aggregation


def raws(formula: Formula, seed: int) -> list[Any]:
    draw = random.Random(seed)
    lls = [-draw.uniform(0.1, 300.0) for _ in range(37)]
    if formula in ("bits_per_byte", "weighted_perplexity"):
        return [(ll, draw.randint(1, 500)) for ll in lls]
    return [ll / 100 for ll in lls]


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_are_lm_evals_bit_for_bit(formula: Formula) -> None:
    from lm_eval.api import metrics

    for seed in range(20):
        values = raws(formula, seed)
        assert FORMULAS[formula](values) == getattr(metrics, formula)(values)


@pytest.mark.parametrize("sizes", [[3, 17, 5], [1, 1, 1], [4]])
def test_leaves_are_pooled_as_lm_eval_pools_them(sizes: list[int]) -> None:
    from lm_eval.api.metrics import aggregate_subtask_metrics

    values = [random.Random(size).random() for size in sizes]
    assert pooled_value(values, sizes) == (values[0] if len(values) == 1 else aggregate_subtask_metrics(values, sizes))


def test_aggregating_needs_neither_lm_eval_nor_torch() -> None:
    code = (
        "import pickle, sys; from evomerge.types import ItemScore;"
        "aggregation = pickle.loads(bytes.fromhex(sys.argv[1]));"
        "items = [ItemScore('t/a', 1.0, 1.0, True, 'c'), ItemScore('t/b', 0.0, 1.0, False)];"
        "score = aggregation.score(items);"
        "print(score.value, [m for m in ('torch', 'lm_eval', 'transformers') if m in sys.modules])"
    )
    for aggregation in (TaskMean(RIGHT_OR_WRONG, "mean", "acc"), ItemMean(RIGHT_OR_WRONG)):
        pickled = pickle.dumps(aggregation).hex()
        done = subprocess.run([sys.executable, "-c", code, pickled], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "0.5 []"


@pytest.mark.parametrize("raw", ["-inf", -1e6])
def test_a_score_that_is_not_finite_fails_the_trial(raw: Any) -> None:
    aggregation = TaskMean(PERPLEXITY, "perplexity", "perplexity,none")
    with pytest.raises(TrialError, match="perplexity,none of task 't' is "):
        aggregation.score([ItemScore("t/a", 9.9, 1.0, raw), ItemScore("t/b", 1.0, 1.0, raw)])
