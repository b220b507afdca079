"""`evomerge doctor`: names the cause in broken merges, finds nothing in healthy ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import evomerge
from evomerge.cli import main
from evomerge.examine.doctor import Diagnosis, doctor, glance
from evomerge.examine.findings.behaviour import repetition
from evomerge.examine.findings.measures import Measured, project
from evomerge.recipe.mergekit import read_recipe
from tests.examine import healthy
from tests.examine.broken import BROKEN, Breakage, lambda_of_3, slices_out_of_order, variants
from tests.examine.patients import FAMILIES, Models, edit, write_models

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]
MOST = 2
"""Findings in a merge with one fault: the cause, and at most one of its consequences."""


def _of_family(family: str) -> Any:
    return pytest.param(family, marks=[] if family == "llama" else [pytest.mark.slow])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Models]:
    """Makes the models of a family, once."""
    known: dict[str, Models] = {}

    def make(family: str) -> Models:
        if family not in known:
            known[family] = write_models(family, tmp_path_factory.mktemp(family))
        return known[family]

    return make


def _cases() -> Iterator[Any]:
    for family in FAMILIES:
        for cause, finding, breakage in variants(family):
            fast = family == "llama" or (family == "phi3" and "fused" in cause)
            marks = [] if fast else [pytest.mark.slow]
            yield pytest.param(family, finding, breakage, id=f"{family}, {cause}: {breakage.__name__}", marks=marks)


def test_there_are_fifteen_causes() -> None:
    assert len(BROKEN) == 15
    assert all(by_family for _, by_family in BROKEN.values())


@pytest.mark.parametrize(("family", "finding", "breakage"), _cases())
def test_the_cause_comes_first(
    family: str, finding: str, breakage: Breakage, made: Callable[[str], Models], tmp_path: Path
) -> None:
    case = breakage(made(family), tmp_path / "merge")
    found = doctor(case.model, quick=case.quick, device="cpu", **case.options).findings
    assert found
    assert found[0].name.startswith(finding), [f.says for f in found]
    assert len(found) <= MOST, [f.says for f in found]
    assert found[0].evidence
    assert found[0].cause
    assert found[0].change


@pytest.mark.parametrize("kind", healthy.HEALTHY, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("family", map(_of_family, FAMILIES))
def test_nothing_is_found_in_healthy_merges(
    family: str, kind: Callable[[Models], Any], made: Callable[[str], Models], tmp_path: Path
) -> None:
    folder = healthy.write(made(family), kind, tmp_path / "merge")
    for model in (folder, folder.with_suffix(".yaml")):
        assert _said(doctor(model, quick=True)) == []


@pytest.mark.parametrize(
    "kind",
    [healthy.union, *(pytest.param(k, marks=pytest.mark.slow) for k in healthy.HEALTHY if k is not healthy.union)],
)
def test_nothing_is_felt_in_healthy_merges(
    kind: Callable[[Models], Any], made: Callable[[str], Models], tmp_path: Path
) -> None:
    """Models are run, too."""
    found = doctor(healthy.write(made("llama"), kind, tmp_path / "merge"), device="cpu")
    assert _said(found) == []
    assert found.symptoms == ()
    assert "the merge" in found.behaviour


def _said(diagnosis: Diagnosis) -> list[str]:
    return [finding.says for finding in diagnosis.findings]


# Real models


SPECIALISTS = ("french", "gsm8k", "shakespeare")


def _specialists(root: Path, method: str, **parameters: float) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(root / name), "parameters": parameters} for name in SPECIALISTS],
    }
    return recipe if method == "linear" else {**recipe, "base_model": str(root / "base")}


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {"weight": 0.34}),
        ("task_arithmetic", {"weight": 1.0}),
        ("ties", {"weight": 0.5, "density": 0.3}),
        ("dare_ties", {"weight": 0.4, "density": 0.1}),
    ],
)
def test_nothing_is_found_in_merges_of_the_specialists(
    method: str, parameters: dict[str, float], shared: Path, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(_specialists(shared / "specialists", method, **parameters)))
    assert _said(doctor(file, device="cpu", quick=method != "linear")) == []


@pytest.mark.slow
def test_a_real_merge_that_went_too_far_is_felt(shared: Path, tmp_path: Path) -> None:
    recipe = _specialists(shared / "specialists", "ties", weight=0.5, density=0.3)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "parameters": {"lambda": 3.0}}))
    tasks = Path(__file__).parents[1] / "scoring" / "task_files"
    for name in SPECIALISTS:
        text = (tasks / f"{name}_text.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(text.replace("ITEMS", str(shared / "specialists" / "items")))
    slices = {name: {"task": f"{name}_text", "metric": "bits_per_byte", "items": 20} for name in SPECIALISTS}
    (tmp_path / "fitness.yaml").write_text(yaml.safe_dump({"include": ["."], "slices": slices}))
    found = doctor(tmp_path / "recipe.yaml", fitness=tmp_path / "fitness.yaml", device="cpu")
    assert [f.name for f in found.findings] == ["beyond-the-sources"]
    assert "worse-than-sources" in [s.name for s in found.symptoms] or "incoherent" in [s.name for s in found.symptoms]
    assert set(found.scores) == {"the merge", "base", *SPECIALISTS}


@pytest.mark.slow
def test_nothing_is_found_in_the_winner_of_the_quickstart(tmp_path: Path) -> None:
    result = evomerge.quickstart(tmp_path, trials=24, device="cpu")
    assert result.checkpoint is not None
    assert result.recipe is not None
    assert _said(doctor(result.recipe, quick=True)) == []
    found = doctor(result.checkpoint, fitness=tmp_path / "fitness/quickstart.yaml", device="cpu")
    assert _said(found) == []
    assert found.symptoms == ()


# Without parents, with others, and what is wrong with the input


def test_without_parents_it_says_so_and_still_sees_what_the_model_shows(
    made: Callable[[str], Models], tmp_path: Path
) -> None:
    models = made("llama")
    folder = healthy.write(models, healthy.linear, tmp_path / "merge")
    (folder / "mergekit_config.yml").unlink()
    found = doctor(folder, quick=True)
    assert found.healthy
    assert "no parents are known" in found.notes[0]
    edit(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("inf")))
    assert [f.name for f in doctor(folder, quick=True).findings] == ["not-finite"]


def test_parents_that_are_gone_are_told(made: Callable[[str], Models], tmp_path: Path) -> None:
    models = Models("llama", tmp_path / "models")
    shutil.copytree(made("llama").root / "one", models.source("one"))
    inputs = [{"model": str(models.source("one"))}]
    folder = models.merge(tmp_path / "merge", {"merge_method": "passthrough", "models": inputs})
    shutil.rmtree(models.root)
    found = doctor(folder, quick=True)
    assert found.healthy
    assert found.parents == {}
    assert found.notes[0].startswith("the parents that mergekit_config.yml names cannot be opened (there is no folder")
    assert found.notes[1].startswith("no parents are known")


def test_given_parents_come_before_the_recipes(made: Callable[[str], Models], tmp_path: Path) -> None:
    models = made("llama")
    folder = healthy.write(models, healthy.linear, tmp_path / "merge")
    found = doctor(folder, quick=True, sources=[str(models.source("one")), str(models.source("stranger"))])
    assert set(found.parents) == {"one", "stranger"}
    assert [f.name for f in found.findings] == ["unrelated-lineage"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["nowhere"], "nowhere"),
        (["merge", "--source", "nowhere"], "nowhere"),
        (["merge", "--base", "one", "--source", "one"], "one is the base and a source"),
        (["merge", "--fitness", "none.yaml"], "none.yaml"),
        (["merge", "--output", "nowhere/x.json"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str],
    problem: str,
    made: Callable[[str], Models],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Said,
) -> None:
    models = made("llama")
    shutil.copytree(models.source("one"), tmp_path / "one")
    healthy.write(models, healthy.linear, tmp_path / "merge")
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *words, "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    line = said.err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert problem in line


def test_the_command_prints_evidence_cause_and_change(
    made: Callable[[str], Models], tmp_path: Path, capsys: Said
) -> None:
    case = lambda_of_3(made("llama"), tmp_path / "merge")
    assert main(["doctor", str(case.model), "--quick", "--output", str(tmp_path / "d.json")]) == 1
    out = capsys.readouterr().out
    for word in ("beyond-the-sources", "one 1.50", "lambda in the recipe: 3", "likely cause:", "change:", "1 finding"):
        assert word in out
    assert main(["doctor", str(case.model), "--quick", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "d.json").read_text())
    assert told["healthy"] is False
    assert told["findings"][0]["name"] == "beyond-the-sources"
    assert told["findings"][0]["evidence"][1]["beside"].keys() == {"one", "two"}
    fine = healthy.write(made("llama"), healthy.linear, tmp_path / "fine")
    assert main(["doctor", str(fine), "--quick"]) == 0
    assert "nothing was found" in capsys.readouterr().out


def test_a_model_that_cannot_be_run_is_a_finding(made: Callable[[str], Models], tmp_path: Path) -> None:
    folder = healthy.write(made("llama"), healthy.linear, tmp_path / "merge")
    (folder / "mergekit_config.yml").unlink()
    edit(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    found = doctor(folder, device="cpu")
    assert [f.name for f in found.findings] == ["cannot-run"]
    assert "up_proj" in str(found.findings[0].evidence[0].value)


# The end of a search


FAR = """
def score(model, tokenizer, items):
    size = sum(float(p.square().sum()) for p in model.parameters())
    return [size for _ in items]
"""
"""Prefers large weights, so that a merge that is too large wins."""


def test_a_search_says_what_it_sees_in_its_winner(tiny_study: Study, capsys: Said) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["genes"]["weight"].update(low=2.9, high=3.1, init=3.0)
        fitness["slices"] = {"large": {"python": "far:score", "data": "tasks/tiny_a.jsonl", "floor": 0.0}}

    space = tiny_study(change)
    Path("far.py").write_text(FAR)
    assert main(["search", str(space), "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["winner"]["label"].startswith("trial")
    assert [f["name"] for f in told["findings"]] == ["beyond-the-sources"]
    assert main(["resume", told["run"], "--device", "cpu"]) == 0
    assert "seen in the winner: harmful: the merge goes" in capsys.readouterr().out


def test_a_look_that_fails_is_no_failure_of_the_search(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("evomerge.examine.doctor.parents_of", fail)
    assert main(["search", str(tiny_study()), "--trials", "6", "--json", "--device", "cpu"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_a_glance_is_the_quick_part(made: Callable[[str], Models], tmp_path: Path) -> None:
    case = lambda_of_3(made("llama"), tmp_path / "merge")
    recipe = read_recipe(case.model / "mergekit_config.yml")
    assert glance(recipe) == doctor(case.model.with_suffix(".yaml"), quick=True).findings


def test_a_search_asked_for_the_order_of_its_paths_layers(made: Callable[[str], Models], tmp_path: Path) -> None:
    case = slices_out_of_order(made("llama"), tmp_path / "merge")
    for model in (case.model, case.model.with_suffix(".yaml")):
        (found,) = doctor(model, quick=True).findings
        assert (found.name, found.severity) == ("layers-out-of-order", "suspect")
    assert glance(read_recipe(case.model / "mergekit_config.yml")) == ()
    (case.model / "mergekit_config.yml").unlink()
    sources = [str(made("llama").source(name)) for name in ("one", "two")]
    assert [f.severity for f in doctor(case.model, quick=True, sources=sources).findings] == ["broken"]


# Instruments


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=4), st.integers(0, 1000))
def test_a_projection_finds_the_coefficients(weights: list[float], seed: int) -> None:
    draw = np.random.default_rng(seed)
    base, *deltas = draw.normal(size=(len(weights) + 1, 500))
    delta = sum((w * d for w, d in zip(weights, deltas, strict=True)), np.zeros(500))
    columns = np.stack([base, delta, *deltas])
    names = ("base", *(f"s{i}" for i in range(len(weights))))
    measured = Measured("t", (20, 25), 0, 0, 0, 1.0, names, columns @ columns.T, {})
    fit = project([measured])
    assert fit is not None
    assert [fit.coefficients[n] for n in names[1:]] == pytest.approx(weights, abs=1e-6)
    assert fit.reach == pytest.approx(fit.growth, abs=1e-6)
    assert measured.norm == pytest.approx(np.linalg.norm(base + delta))
    assert measured.cosines["s0"] == pytest.approx(
        (base + delta) @ (base + deltas[0]) / np.linalg.norm(base + delta) / np.linalg.norm(base + deltas[0])
    )


def test_repetition() -> None:
    assert repetition([1, 2, 3, 4, 5, 6, 7]) == 0.0
    assert repetition([1, 2] * 20) == pytest.approx(1 - 2 / 37)
    assert repetition([1, 2]) == 0.0


def test_what_is_read_in_runs_is_as_what_is_read_whole(made: Callable[[str], Models], tmp_path: Path) -> None:
    """Inner products of large tensors are taken over a part of them."""
    from evomerge.examine.findings.measures import _part

    tensor = torch.arange(9_000_000, dtype=torch.float32).reshape(3000, 3000)
    part = _part(tensor)
    assert 1 << 19 < len(part) <= 1 << 20
    assert float(part[0]) == 0.0
    assert float(part[-1]) == float(tensor[-1, -1])
