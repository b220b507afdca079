"""Merging by singular directions, against the formula on whole matrices, and its slopes against differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evomerge.merging.kernels import bands
from evomerge.merging.kernels.inputs import Inputs
from evomerge.recipe.bands import Bands

WEIGHTS = (Bands((0.5, -0.5, 1.5)), Bands(tuple(i / 10 for i in range(8))), 0.3)
TOPS = (Bands((0.5, -0.5, 1.5), top=5), Bands((0.2, 0.4, -0.7), (1, 2), top=3), 0.3)


def made(*shape: int) -> Inputs:
    draw = torch.Generator().manual_seed(1)
    tensors = [torch.randn(shape, generator=draw) for _ in range(4)]
    return Inputs(tensors[1:], tensors[0])


@pytest.fixture(params=[(8, 12), (12, 8)])
def inputs(request: pytest.FixtureRequest) -> Inputs:
    return made(*request.param)


@pytest.fixture(params=[(40, 60), (60, 40)])
def large(request: pytest.FixtureRequest) -> Inputs:
    """Of matrices whose largest directions are sampled."""
    return made(*request.param)


def test_a_merge_is_the_formula(inputs: Inputs) -> None:
    expected = inputs.reference.double()
    for i, weight in enumerate(WEIGHTS):
        delta = inputs.tensors[i].double() - inputs.reference.double()
        if isinstance(weight, Bands):
            u, s, v = torch.linalg.svd(delta, full_matrices=False)
            sizes = torch.tensor(weight.sizes_in(8))
            delta = u @ torch.diag(torch.tensor(weight.values).double().repeat_interleave(sizes) * s) @ v
            expected = expected + delta
        else:
            expected = expected + weight * delta
    torch.testing.assert_close(bands.merged(inputs, WEIGHTS).double(), expected, rtol=0, atol=1e-5)


def test_equal_numbers_are_task_arithmetic(inputs: Inputs) -> None:
    merged = bands.merged(inputs, (Bands((0.25,) * 4), 0.0, Bands((0.5,) * 8)))
    expected = inputs.reference + 0.25 * inputs.delta(0) + 0.5 * inputs.delta(2)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)
    assert torch.equal(bands.merged(inputs, (Bands((0.0,) * 8),) * 3), inputs.reference)


def test_the_rest_is_one_more_band(inputs: Inputs) -> None:
    """Without a sample, the same as full bands of which the last one has all other directions."""
    full = (Bands((0.5, -0.5, 1.5), (2, 3, 3)), Bands((0.2, 0.4, -0.7), (1, 2, 5)), 0.3)
    torch.testing.assert_close(bands.merged(inputs, TOPS), bands.merged(inputs, full), rtol=0, atol=1e-5)
    gradient = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2))
    for found, expected in zip(bands.pull(inputs, TOPS, gradient), bands.pull(inputs, full, gradient), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_one_number_for_top_and_rest_is_task_arithmetic(large: Inputs) -> None:
    """However good the sample is: the rest is what the top is not."""
    merged = bands.merged(large, (Bands((0.25,) * 3, top=6), Bands((0.0,) * 7, top=6), 0.0))
    assert torch.equal(merged, (large.reference.double() + 0.25 * large.delta(0).double()).float())


@pytest.mark.parametrize("weights", [WEIGHTS, TOPS])
def test_slopes_are_differences(inputs: Inputs, weights: tuple) -> None:
    slopes_are_differences(inputs, weights)


def test_slopes_of_a_sample_are_differences(large: Inputs) -> None:
    slopes_are_differences(large, TOPS)


def slopes_are_differences(inputs: Inputs, weights: tuple) -> None:
    gradient = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2))
    found = bands.pull(inputs, weights, gradient)

    def loss(moved) -> float:
        return float((bands.merged(inputs, moved).double() * gradient.double()).sum())

    def moved(source: int, band: int, by: float):
        changed = list(weights)
        value = changed[source]
        if isinstance(value, Bands):
            changed[source] = replace(value, values=tuple(v + by * (i == band) for i, v in enumerate(value.values)))
        else:
            changed[source] = value + by
        return changed

    for source, slopes in enumerate(found):
        for band, slope in enumerate(slopes.tolist()):
            difference = (loss(moved(source, band, 0.5)) - loss(moved(source, band, -0.5))) / 1.0
            assert slope == pytest.approx(difference, rel=1e-4, abs=1e-3)
