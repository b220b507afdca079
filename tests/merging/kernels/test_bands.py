"""Merging by singular directions, against the formula on whole matrices, and its slopes against differences."""

from __future__ import annotations

import pytest
import torch

from evomerge.merging.kernels import bands
from evomerge.merging.kernels.inputs import Inputs
from evomerge.recipe.bands import Bands

WEIGHTS = (Bands((0.5, -0.5, 1.5)), Bands(tuple(i / 10 for i in range(8))), 0.3)


@pytest.fixture(params=[(8, 12), (12, 8)])
def inputs(request: pytest.FixtureRequest) -> Inputs:
    draw = torch.Generator().manual_seed(1)
    tensors = [torch.randn(request.param, generator=draw) for _ in range(4)]
    return Inputs(tensors[1:], tensors[0])


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


def test_slopes_are_differences(inputs: Inputs) -> None:
    gradient = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(2))
    found = bands.pull(inputs, WEIGHTS, gradient)

    def loss(weights) -> float:
        return float((bands.merged(inputs, weights).double() * gradient.double()).sum())

    def moved(source: int, band: int, by: float):
        changed = list(WEIGHTS)
        value = changed[source]
        if isinstance(value, Bands):
            changed[source] = Bands(tuple(v + by * (i == band) for i, v in enumerate(value.values)))
        else:
            changed[source] = value + by
        return changed

    for source, slopes in enumerate(found):
        for band, slope in enumerate(slopes.tolist()):
            difference = (loss(moved(source, band, 0.5)) - loss(moved(source, band, -0.5))) / 1.0
            assert slope == pytest.approx(difference, rel=1e-4, abs=1e-4)


def test_factors_are_remembered() -> None:
    kept: dict = {}
    made = []

    def remember(key, make):
        if key not in kept:
            made.append(key)
            kept[key] = make()
        return kept[key]

    tensors = [torch.randn(4, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    for _ in range(2):
        inputs = Inputs(tensors[1:], tensors[0], keys=["base", "a", "b"], remember=remember)
        bands.merged(inputs, (Bands((1.0, 2.0)), Bands((1.0, 2.0))))
    assert len(made) == 2
    assert bands.factor_bytes((4, 6)) == sum(t.numel() * 4 for t in (kept[made[0]].u, kept[made[0]].s, kept[made[0]].v))
    assert bands.factor_bytes((6,)) == 0
