"""`evomerge evaluate`: what a CI pipeline sees of it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import evomerge
from evomerge.cli import main

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]
BASE = ["--fitness", "fitness.yaml", "--reference", "base=models/base"]
TWO_STEPS = """
name: linear
merge_method: linear
models: [{model: models/one, parameters: {weight: 1}}, {model: models/two, parameters: {weight: 1}}]
---
merge_method: task_arithmetic
base_model: models/base
models: [{model: linear, parameters: {weight: 0.7}}]
"""
AT_ONCE = """
merge_method: task_arithmetic
base_model: models/base
models: [{model: models/one, parameters: {weight: 0.35}}, {model: models/two, parameters: {weight: 0.35}}]
"""


def test_json_says_all_that_a_pipeline_decides_by(tiny_study: Study, capsys: Said) -> None:
    tiny_study()
    assert main(["evaluate", "models/one", *BASE, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["feasible"] is True
    for name, slice_ in told["slices"].items():
        low, high = slice_["interval"]
        assert low < slice_["score"] < high, name
        assert slice_["passed"] is True
        assert slice_["items"] > 10
        assert slice_["loss"] > 0
    assert told["slices"]["b"]["floor"] == pytest.approx(told["references"]["base"]["b"] - 0.5)


@pytest.mark.slow
def test_the_exit_code_reaches_the_shell(tiny_study: Study) -> None:
    def strict(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["b"]["floor"] = 0.99

    tiny_study(strict)
    command = [sys.executable, "-m", "evomerge", "evaluate", "models/one", "--fitness", "fitness.yaml", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert [n for n, s in told["slices"].items() if not s["passed"]] == ["b"]


def test_the_files_hold_what_is_printed(tiny_study: Study, capsys: Said) -> None:
    tiny_study()
    options = ["--output", "scores.json", "--items", "items.jsonl", "--json"]
    assert main(["evaluate", "models/one", *BASE, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert json.loads(Path("scores.json").read_text()) == told
    items = [json.loads(line) for line in Path("items.jsonl").read_text().splitlines()]
    for name, slice_ in told["slices"].items():
        scores = [item["score"] for item in items if item["slice"] == name]
        assert len(scores) == slice_["items"]
        assert math.isclose(sum(scores) / len(scores), slice_["score"])


def test_items_as_parquet(tiny_study: Study, capsys: Said) -> None:
    tiny_study()
    assert main(["evaluate", "models/one", *BASE, "--items", "items.parquet"]) == 0
    assert "passes every floor" in capsys.readouterr().out
    assert set(pd.read_parquet("items.parquet")["slice"]) == {"a", "b"}


def test_a_recipe_of_several_documents(tiny_study: Study) -> None:
    tiny_study()
    Path("steps.yaml").write_text(TWO_STEPS)
    Path("once.yaml").write_text(AT_ONCE)
    steps, once = (evomerge.evaluate(file, "fitness.yaml") for file in ("steps.yaml", "once.yaml"))
    assert {n: s.value for n, s in steps.scores.items()} == {n: s.value for n, s in once.scores.items()}
    assert steps.references == once.references


def test_a_recipe_is_found_beside_its_models(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths start at its folder, wherever the command runs."""
    tiny_study()
    Path("recipe.yaml").write_text(AT_ONCE)
    here = evomerge.evaluate("recipe.yaml", "fitness.yaml")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert evomerge.evaluate("../recipe.yaml", "../fitness.yaml").digest == here.digest


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["models/one", "--fitness", "fitness.yaml"], "the floor of 'b' is relative to 'base'"),
        (["models/on", *BASE], "did you mean the folder models/one?"),
        (["models/one", "--fitness", "fitness.yaml", "--reference", "base=models/bas"], "models/base?"),
        (["models", *BASE], "models holds models, and is none; use one of: base, one"),
        (["models/one+models/tow", *BASE], "there is no folder models/tow; did you mean the folder models/two?"),
        (["space.yaml", *BASE], "space.yaml: is a search space, not a mergekit recipe; `evomerge search space.yaml`"),
        (["models/one", "--fitness", "space.yaml"], "space.yaml: is a search space, not a fitness file"),
        (["models/one", "--fitness", "fitness.yaml", "--reference", "base"], "'base' is not NAME=MODEL"),
        (["models/one", *BASE, "--reference", "base=models/two"], "'base' is given twice"),
        (["models/one", *BASE, "--output", "nowhere/x.json"], "--output: there is no folder nowhere"),
        (["models/one", *BASE, "--items", "items.csv"], "--items: items.csv is none of .jsonl, .parquet"),
        (["models/silent", *BASE], "its tokenizer cannot be loaded"),
        (["models/one", "--fitness", "fitness.yaml", "--reference", "base=models/other"], "different vocabularies"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], problem: str, tiny_study: Study, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tiny_study()
    shutil.copytree("models/one", "models/silent")
    for file in Path("models/silent").glob("tokenizer*"):
        file.unlink()
    shutil.copytree("models/one", "models/other")
    tokens = json.loads(Path("models/other/tokenizer.json").read_text())
    tokens["model"]["vocab"]["a"], tokens["model"]["vocab"]["b"] = 3, 2
    Path("models/other/tokenizer.json").write_text(json.dumps(tokens))
    assert main(["evaluate", *words]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert problem in last


def test_a_hub_that_cannot_be_reached(tiny_study: Study, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    tiny_study()
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert main(["evaluate", "org/model@v2", *BASE]) == 2
    said = capsys.readouterr().err
    assert "the hub cannot be reached (no route to host)" in said
    assert "Traceback" not in said


def test_two_sources_of_one_name_are_both_references(tiny_study: Study) -> None:
    """`best_source` is the best of all of them."""

    def best(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["b"]["floor"] = {"of": "best_source", "margin": 1.0}

    tiny_study(best)
    Path("more").mkdir()
    shutil.copytree("models/two", "more/one")
    recipe = yaml.safe_load(AT_ONCE)
    recipe["models"][1]["model"] = "more/one"
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert set(evomerge.evaluate("recipe.yaml", "fitness.yaml").references) == {"one", "more/one"}
