"""`evomerge path`: the points are the merges that they say they are, and nothing that was scored is lost."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.cli import main
from evomerge.errors import TrialError
from evomerge.examine.line import Line
from evomerge.examine.path import Barrier, PathInterrupted, barrier, path
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import execute
from evomerge.merging.resident.materialize import as_it_is
from evomerge.recipe.mergekit import parse_recipe, write_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.study.observer import Observer
from tests.conftest import INTERRUPTIBLE, save_tiny

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]
ONE, TWO = Path("models/one"), Path("models/two")
BASE = {"base": "models/base"}
MERGE = """
merge_method: task_arithmetic
base_model: models/base
models: [{model: models/one, parameters: {weight: 0.8}}, {model: models/two, parameters: {weight: 0.4}}]
dtype: float32
"""
STEPS = """
name: linear
merge_method: linear
models: [{model: models/one, parameters: {weight: 1}}, {model: models/two, parameters: {weight: 1}}]
---
merge_method: task_arithmetic
base_model: models/base
models: [{model: linear, parameters: {weight: 0.7}}]
dtype: float32
"""


def tensors(recipe: Recipe) -> dict[str, Any]:
    bank = SourceBank()
    return {n: execute(job, bank).float().numpy() for n, job in plan(recipe, bank.open).jobs.items()}


def stored(folder: Path) -> dict[str, Any]:
    checkpoint = Checkpoint.open(str(folder))
    return {name: checkpoint.read(name).float().numpy() for name in checkpoint.tensors}


# The line


@pytest.mark.parametrize("t", [-0.25, 0.1, 0.5, 1.5])
def test_a_point_is_the_mean_of_the_ends_rounded_once(t: float, tiny_study: Study) -> None:
    tiny_study()
    one, two = stored(ONE), stored(TWO)
    for dtype, ulp in (("float32", 2.0**-23), ("bfloat16", 2.0**-7)):
        line = Line(as_it_is(str(ONE), "float32"), as_it_is(str(TWO), "float32"), dtype)
        for name, found in tensors(line.at(t)).items():
            exact = (1 - t) * one[name].astype(np.float64) + t * two[name].astype(np.float64)
            slack = 4 * 2.0**-23 * (abs(one[name]) + abs(two[name]))
            assert (abs(found - exact) <= 0.51 * ulp * abs(exact) + slack).all(), (name, dtype)


def test_along_a_recipe_t_is_its_scale(tiny_study: Study) -> None:
    tiny_study()
    line = Line(as_it_is("models/base", "float32"), parse_recipe(MERGE), "float32")
    for t in (0.25, 1.5):
        scaled = tensors(parse_recipe(MERGE.replace("0.8", str(0.8 * t)).replace("0.4", str(0.4 * t))))
        for name, found in tensors(line.at(t)).items():
            np.testing.assert_allclose(found, scaled[name], rtol=1e-5, atol=1e-6)


def test_the_ends_are_the_models_bit_for_bit(tiny_study: Study) -> None:
    tiny_study()
    line = Line(parse_recipe(MERGE), as_it_is(str(TWO), "float32"), "float32")
    for found, wanted in ((line.at(0.0), parse_recipe(MERGE)), (line.at(1.0), as_it_is(str(TWO), "float32"))):
        for name, tensor in tensors(wanted).items():
            assert tensors(found)[name].tobytes() == tensor.tobytes()


def test_recipes_with_documents_of_one_name_stand_side_by_side(tiny_study: Study) -> None:
    tiny_study()
    other = STEPS.replace("0.7", "0.3").replace("models/two", "models/base")
    line = Line(parse_recipe(STEPS), parse_recipe(other), "float32")
    first, last = tensors(parse_recipe(STEPS)), tensors(parse_recipe(other))
    middle = tensors(line.at(0.5))
    for name, found in middle.items():
        np.testing.assert_allclose(found, (first[name] + last[name]) / 2, rtol=1e-5, atol=1e-6)
    again = parse_recipe(write_recipe(line.at(0.5)))
    assert all(tensors(again)[name].tobytes() == found.tobytes() for name, found in middle.items())


# Scores


def test_every_point_scores_as_evaluate_scores_it(tiny_study: Study) -> None:
    tiny_study()
    found = evomerge.path(ONE, TWO, fitness="fitness.yaml", points=3, references=BASE)
    Path("middle.yaml").write_text(
        "merge_method: linear\nmodels: [{model: models/one, parameters: {weight: 0.5}},"
        " {model: models/two, parameters: {weight: 0.5}}]\nparameters: {normalize: false}\ndtype: float32\n"
    )
    for point, model in zip(found.points, (ONE, "middle.yaml", TWO), strict=True):
        alone = evomerge.evaluate(model, "fitness.yaml", references=BASE)
        assert (point.scores, point.digest) == (alone.scores, alone.digest)
        assert point.verdicts == alone.verdicts


def test_a_recipe_alone_starts_at_its_base(tiny_study: Study) -> None:
    tiny_study()
    Path("merge.yaml").write_text(MERGE)
    found = path("merge.yaml", fitness="fitness.yaml", points=4, last=1.5)
    assert [p.t for p in found.points] == [0, 0.5, 1, 1.5]
    assert found.points[0].scores == found.references["base"]
    assert found.points[2].digest == evomerge.evaluate("merge.yaml", "fitness.yaml").digest


def test_a_point_that_cannot_be_scored_is_told_and_the_rest_goes_on(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.evaluator.evaluator import Evaluator

    evaluate = Evaluator.evaluate

    def broken(self: Evaluator, recipe: Recipe, *rest: Any) -> Any:
        if recipe.output.method == "linear":
            raise TrialError("NaN in the middle")
        return evaluate(self, recipe, *rest)

    tiny_study()
    monkeypatch.setattr(Evaluator, "evaluate", broken)
    found = path(ONE, TWO, fitness="fitness.yaml", points=3, references=BASE)
    assert [p.reason for p in found.points] == [None, "NaN in the middle", None]
    assert not found.points[1].feasible
    assert found.barrier(found.mean_loss) == Barrier(0.0, 0.0)


def test_what_was_scored_survives_an_interrupt(tiny_study: Study) -> None:
    class Stops(Observer):
        def note(self, message: str) -> None:
            if message.startswith("t = 1"):
                raise KeyboardInterrupt

    tiny_study()
    with pytest.raises(PathInterrupted) as stopped:
        path(ONE, TWO, fitness="fitness.yaml", references=BASE, observer=Stops())
    partial = stopped.value.partial
    assert [p.t for p in partial.points] == [0, 1]
    assert not partial.complete


# The barrier


@given(st.floats(-5, 5), st.floats(-5, 5), st.lists(st.floats(0, 10), min_size=1, max_size=9))
def test_the_barrier_is_the_largest_excess_over_the_straight_line(a: float, b: float, bumps: list[float]) -> None:
    n = len(bumps) + 1
    excess = [0.0, *bumps, 0.0]
    curve = [(i / n, a + (b - a) * i / n + e) for i, e in enumerate(excess)]
    found = barrier(curve)
    assert found is not None
    assert math.isclose(found.height, max(excess), abs_tol=1e-9)
    if max(bumps) > 1e-6:
        assert math.isclose(excess[round(found.t * n)], max(excess), abs_tol=1e-9)


def test_a_line_below_its_ends_has_no_barrier() -> None:
    assert barrier([(0.0, 1.0), (0.5, 0.2), (1.0, 1.0)]) == Barrier(0.0, 0.0)
    assert barrier([(0.0, math.inf), (0.5, 0.2), (1.0, 1.0)]) is None


# The command


def test_the_table_the_picture_and_the_verdict(tiny_study: Study, capsys: Said) -> None:
    tiny_study()
    words = ["path", "models/one", "models/two", "--fitness", "fitness.yaml", "--reference", "base=models/base"]
    assert main([*words, "--points", "3"]) == 0
    out = capsys.readouterr().out
    assert "one → two, holdout items" in out
    assert "passes every floor at t = 0, 0.5, 1" in out
    assert "loss barrier of the mean:" in out
    assert Path("path.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_one_document_and_the_exit_code_says_whether_a_point_passes(tiny_study: Study, capsys: Said) -> None:
    def strict(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["b"]["floor"] = 0.99

    tiny_study(strict)
    words = ["path", "models/one", "models/two", "--fitness", "fitness.yaml", "--points", "2", "-o", "x.svg", "--json"]
    assert main(words) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["feasible"], told["passing"], told["complete"], told["figure"]) == (False, [], True, "x.svg")
    for point in told["points"]:
        assert point["slices"]["b"]["passed"] is False
        assert point["slices"]["a"]["interval"][0] < point["slices"]["a"]["score"]
        assert math.isclose(point["loss"], sum(s["loss"] for s in point["slices"].values()) / 2)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["models/one", "models/two", "--points", "1"], "--points: 1 points make no line"),
        (["models/one", "models/two", "--from", "1"], "the line from 1 to 1 has no length"),
        (["models/one", "models/two", "--points", "99999999999"], "--points: 99999999999 points are more than 10000"),
        (["models/one", "models/two", "-o", "x.txt"], "--output: x.txt is none of .png"),
        (["models/one", "./models/one"], "both ends are models/one; give two models"),
        (["models/one"], "models/one is one model; give a second one, or a recipe"),
        (["flat.yaml"], "the recipe has no base_model to start from"),
        (["models/one", "models/wide"], "merge models of one architecture"),
        (["models/one", "models/other"], "is a llama model, models/other a mistral model: no line leads from one"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], problem: str, tiny_study: Study, capsys: Said) -> None:
    tiny_study()
    flat = {"merge_method": "linear", "models": [{"model": "models/one", "parameters": {"weight": 1}}]}
    Path("flat.yaml").write_text(yaml.safe_dump(flat))
    save_tiny(Path("models/wide"), 1, hidden_size=32)
    shutil.copytree("models/two", "models/other")
    config = json.loads(Path("models/other/config.json").read_text())
    Path("models/other/config.json").write_text(json.dumps(config | {"model_type": "mistral"}))
    assert main(["path", *words, "--fitness", "fitness.yaml", "--reference", "base=models/base"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert problem in last


@pytest.mark.slow
def test_ctrl_c_leaves_the_scored_points_on_stdout(tiny_study: Study) -> None:
    tiny_study()
    words = ["path", "models/one", "models/two", "--fitness", "fitness.yaml", "--reference", "base=models/base"]
    command = [*INTERRUPTIBLE, *words, "--points", "900", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("t = 1:"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    told = json.loads(out)
    assert not told["complete"]
    assert {0.0, 1.0} <= {point["t"] for point in told["points"]}
    assert f"{len(told['points'])} of 900 points are scored" in err
