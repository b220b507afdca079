"""What a page is made of: names in place of paths, settings by layer, effects of genes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evomerge.optimize.gaussian_process import GaussianProcess
from evomerge.recipe.mergekit import parse_recipe
from evomerge.report.page.importance import importance_data
from evomerge.report.page.places import Places
from evomerge.report.page.run import Run
from evomerge.report.page.weights import weights_data
from tests.report.page.made import MadeRun

STAGES = """
name: stage-ties
merge_method: ties
base_model: /m/base
slices:
- sources:
  - {model: /m/one, layer_range: [0, 4], parameters: {weight: [{filter: layers.0.mlp, value: 0.5}, {value: 0.1}]}}
---
name: stage-linear
merge_method: linear
slices:
- sources:
  - {model: /m/one, layer_range: [0, 2], parameters: {weight: 0.7}}
- sources:
  - {model: /m/one, layer_range: [2, 4], parameters: {weight: 0.9}}
---
merge_method: passthrough
slices:
- sources: [{model: stage-ties, layer_range: [0, 3]}]
- sources: [{model: stage-linear, layer_range: [3, 4]}]
"""


def test_settings_of_a_recipe_with_stages() -> None:
    found = weights_data(parse_recipe(STAGES), Places({"base": "/m/base", "one": "/m/one"}, []))
    assert found["methods"] == [
        {"layers": "layers 0 to 2", "method": "ties"},
        {"layers": "layer 3", "method": "linear"},
    ]
    grid = found["parameters"]["weight"]
    cells = {
        (layer, column["module"]): value
        for layer, row in zip(grid["layers"], grid["values"], strict=True)
        for column, value in zip(grid["columns"], row, strict=True)
        if value is not None
    }
    assert cells == {("layers 0 to 2", "mlp"): 0.5, ("layers 0 to 2", "other"): 0.1, ("layer 3", None): 0.9}


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("/here/models/one", "models/one"),
        ("/far/models/two", "two"),
        ("/far/models/unknown", "unknown"),
        ("org/name@abc", "org/name@abc"),
        ("/here/models/one+/far/adapters/a", "models/one+a"),
        ("C:\\Users\\somebody\\model", "model"),
        ("/here/runs/x/aligned/two", "runs/x/aligned/two"),
    ],
)
def test_a_model_is_shown_by_what_is_known_of_it(reference: str, shown: str) -> None:
    places = Places(
        {"one": "/here/models/one", "two": "/far/models/two"}, [Path("/here")], Path("/here/runs/x/aligned")
    )
    assert places.reference(reference) == shown
    assert places.name("/here/models/one") == "one"
    assert places.name("/here/runs/x/aligned/two") == "two"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read '/home/somebody/x/config.json'", "cannot read 'config.json'"),
        ("~/models/x is gone", "x is gone"),
        ("0.5 and/or 0.97 / 2 of task/item", "0.5 and/or 0.97 / 2 of task/item"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_a_text_has_no_path_of_the_machine(text: str, shown: str) -> None:
    assert Places({}, []).text(text) == shown


def test_differences_of_a_process_are_those_of_its_joint_posterior() -> None:
    """By equations 2.25 and 2.26, written out."""
    draw = np.random.default_rng(0)
    inputs = draw.random((20, 4))
    outputs = (np.sin(3 * inputs[:, :1]) + 0.3 * inputs[:, 1:2]).astype(float)
    groups = [np.array([0, 1]), np.array([2, 3])]
    process = GaussianProcess(inputs, outputs, groups)
    center, places, low, high = inputs[0], np.array([0, 2]), np.array([0.1, 0.2]), np.array([0.9, 0.7])
    change, error = process.predict_differences(center, places, low, high)
    *scales, noise = process.hyperparameters

    def kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        squares = [
            ((first[:, None, g] - second[None, :, g]) ** 2).sum(axis=2) * np.exp(-2 * s)
            for g, s in zip(groups, scales, strict=True)
        ]
        return np.exp(-0.5 * sum(squares))

    inverse = np.linalg.inv(kernel(inputs, inputs) + (np.exp(noise) + 1e-9) * np.eye(20))
    for at, place in enumerate(places):
        ends = np.repeat(center[None], 2, axis=0)
        ends[:, place] = low[at], high[at]
        mean, std = process.predict(ends)
        assert change[at] == pytest.approx(mean[1, 0] - mean[0, 0], abs=1e-6)
        cross = kernel(ends, inputs)
        unit = std[:, 0] ** 2 / np.maximum(1 - np.einsum("ij,jk,ik->i", cross, inverse, cross), 1e-12)
        joint = (kernel(ends, ends) - cross @ inverse @ cross.T) * unit.mean()
        assert error[at] ** 2 == pytest.approx(joint[0, 0] + joint[1, 1] - 2 * joint[0, 1], rel=1e-3, abs=1e-8)


def test_the_gene_that_matters_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = MadeRun(tmp_path, kinds="c" * 30, genes=3)
    run = Run(made.make())
    trials = [t for t in run.state.search.trials if t.kind == "search"]
    for trial in trials:
        object.__setattr__(trial, "objective", 0.5 + 0.4 * float(trial.genome["weight[1]"]))
    run.state.search.settle(run.state.search.floors)
    found = importance_data(run)
    assert found is not None
    first, *others = found["effects"]
    assert first["gene"] == "weight[1]"
    assert first["interval"][0] > 0
    assert first["effect"] == pytest.approx(0.32, abs=0.08)
    assert all(abs(other["effect"]) < 0.05 for other in others)
