"""Predictions from a part of the items: right on average, with the error that they say, and drawn together as far as
they differ by chance."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.scoring.stats.aggregation import ItemWeights, MeanKind
from evomerge.scoring.stats.anchors import Strata, anchors
from evomerge.scoring.stats.forecast import Forecast, Forecaster
from evomerge.types import ItemScore

COUNT = 120


def item_weights() -> ItemWeights:
    return ItemWeights.of(MeanKind(1, best=1.0, worst=0.0), [ItemScore(str(n), 0.0) for n in range(COUNT)])


def part(units: np.ndarray, scored: list[int]) -> np.ndarray:
    seen = np.full_like(units, np.nan)
    seen[:, scored] = units[:, scored]
    return seen


@pytest.mark.parametrize("stratified", [False, True])
def test_the_error_is_as_large_as_it_says(stratified: bool) -> None:
    """Right and wrong answers whose chance depends on the pattern; 40 of 120 items."""
    draw = np.random.default_rng(0)
    pattern = np.repeat([0, 1, 2], [60, 40, 20])
    strata = Strata.by(pattern[:, None].astype(float))
    errors, variances = [], []
    for _ in range(300):
        order = draw.permutation(COUNT)
        mixed = Strata(strata.of[order], strata.distances)
        chosen = order[anchors(mixed, np.full(COUNT, 1 / COUNT), 40)] if stratified else order[:40]
        control = (draw.random(COUNT) < np.array([0.9, 0.5, 0.1])[pattern]).astype(float)
        units = (draw.random((1, COUNT)) < np.array([0.4, 0.5, 0.9])[pattern]).astype(float)
        forecaster = Forecaster(item_weights(), strata if stratified else None)
        found = forecaster.forecast(part(units, [int(n) for n in chosen]), control)
        errors.append(float(found.mean[0] - units.mean()))
        variances.append(float(found.covariance[0, 0]))
    assert abs(np.mean(errors)) < 0.015
    assert np.mean(variances) == pytest.approx(np.var(errors), rel=0.25)


def test_strata_make_the_error_smaller() -> None:
    pattern = np.repeat([0.0, 1.0], COUNT // 2)
    units, control = pattern[None, :], np.full(COUNT, 0.5)
    scored = [*range(10), *range(110, 120)]
    with_strata = Forecaster(item_weights(), Strata.by(pattern[:, None])).forecast(part(units, scored), control)
    without = Forecaster(item_weights(), None).forecast(part(units, scored), control)
    assert with_strata.mean[0] == pytest.approx(0.5)
    assert with_strata.covariance[0, 0] == pytest.approx(0.0)
    assert without.covariance[0, 0] > 0.001


def test_all_items_are_no_prediction() -> None:
    units = np.random.default_rng(1).random((3, COUNT))
    found = Forecaster(item_weights(), None).forecast(units, np.zeros(COUNT))
    assert found.mean == pytest.approx(units.mean(axis=1))
    assert not found.covariance.any()


def test_means_that_differ_by_chance_are_drawn_together() -> None:
    apart = np.array([-0.1, -0.05, 0.0, 0.05, 0.1])
    noisy = Forecast(0.5 + apart, np.eye(5) * 0.01).shrunk()
    sure = Forecast(0.5 + apart, np.eye(5) * 1e-6).shrunk()
    assert np.ptp(noisy) < 1e-9
    assert sure == pytest.approx(0.5 + apart, abs=1e-3)
    assert np.array_equal(Forecast(apart[:3], np.eye(3)).shrunk(), apart[:3]), "three say nothing of their spread"


def test_shrunk_means_are_nearer_to_the_truth() -> None:
    draw = np.random.default_rng(2)
    before, after = 0.0, 0.0
    for _ in range(200):
        truth = draw.normal(0.5, 0.05, 12)
        seen = Forecast(truth + draw.normal(0.0, 0.05, 12), np.eye(12) * 0.0025)
        before += float(((seen.mean - truth) ** 2).sum())
        after += float(((seen.shrunk() - truth) ** 2).sum())
    assert after < 0.75 * before


def alike(draw: np.random.Generator, count: int, ways: np.ndarray, noise: float) -> np.ndarray:
    """[count, items], candidates that differ in a few ways, and by noise."""
    return np.asarray(draw.standard_normal((count, len(ways))) @ ways + noise * draw.standard_normal((count, COUNT)))


def test_how_others_differed_makes_the_error_smaller_and_it_is_as_large_as_it_says() -> None:
    draw = np.random.default_rng(4)
    forecaster, scored = Forecaster(item_weights(), None), np.arange(COUNT) < 24
    errors: dict[bool, list[float]] = {False: [], True: []}
    variances: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(150):
        ways, base = draw.standard_normal((3, COUNT)), draw.standard_normal(COUNT)
        control, *others = base + alike(draw, 25, ways, 0.2)
        units = base + alike(draw, 1, ways, 0.2)
        components = forecaster.components(np.array(others), control, scored)
        assert components is not None
        for known in errors:
            found = forecaster.forecast(np.where(scored, units, np.nan), control, components if known else None)
            errors[known].append(float(found.mean[0] - units.mean()))
            variances[known].append(float(found.covariance[0, 0]))
    assert np.var(errors[True]) < 0.25 * np.var(errors[False])
    for known in errors:
        assert abs(np.mean(errors[known])) < 3 * np.std(errors[known]) / np.sqrt(150)
        assert np.mean(variances[known]) == pytest.approx(np.var(errors[known]), rel=0.35)


def test_few_others_or_equal_ones_explain_nothing() -> None:
    draw = np.random.default_rng(5)
    forecaster, scored, control = Forecaster(item_weights(), None), np.arange(COUNT) < 24, np.zeros(COUNT)
    few = alike(draw, 8, draw.standard_normal((3, COUNT)), 0.0)
    assert forecaster.components(few, control, scored) is None, "too few to be tried on each other"
    assert forecaster.components(np.zeros((20, COUNT)), control, scored) is None
