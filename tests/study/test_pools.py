"""Searches over a pool of models and over a run's checkpoints: what is merged, tried first, and found again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import evomerge
from evomerge.errors import InputError
from evomerge.study.dry_run import dry_run
from evomerge.study.observer import Observer
from evomerge.study.run.trial import Trial
from tests.conftest import save_tiny
from tests.evaluator.test_executor import facts
from tests.study.test_search import StopAfter

Study = Callable[..., Path]
TRIALS = 16
WEIGHT = {"low": 0.0, "high": 1.0, "init": 0.4, "per": ["sources"]}


class Said(Observer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)

    warn = note


def pool(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["sources"] = {"pool": "models/*"}
    space["genes"] = {"method": "task_arithmetic", "weight": WEIGHT}
    space["optimizer"] = {"name": "cma-es", "seed": 3}
    space["budget"] = {"trials": TRIALS}


@pytest.fixture
def models(tiny_study: Study) -> Path:
    """A pool of three fine-tunes, a copy of one of them, and a file that is no model."""
    folder = Path("models")
    save_tiny(folder / "three", 4, near=folder / "base", scale=0.2)
    shutil.copytree(folder / "one", folder / "one-again")
    (folder / "notes.txt").write_text("no model")
    return folder


@pytest.fixture
def whole(tiny_study: Study, models: Path) -> list[Any]:
    """The trials of an undisturbed search."""
    evomerge.search(tiny_study(pool), run="whole")
    return facts("whole")


def merged(trial: Trial) -> set[str]:
    models = (Path(model).name for model in trial.recipe.models())
    return {name for name in models if name != "base"}


def members(trial: Trial) -> set[str]:
    included = [key for key, value in trial.genome.items() if key.startswith("include[") and float(value) >= 0.5]
    return {key[len("include[") : -1] for key in included}


def test_a_pool_is_scored_then_its_subsets(tiny_study: Study, models: Path) -> None:
    said = Said()
    result = evomerge.search(tiny_study(pool), observer=said)
    assert any("one-again is left out: its files are those of one" in line for line in said.lines)
    assert any("notes.txt (no checkpoint)" in line for line in said.lines)
    trials = result.search.trials
    assert [t.label for t in trials[:5]] == ["base", "one", "three", "two", "uniform"]
    subsets = [t for t in trials if t.label.partition(" ")[0] in ("experts", "selected", "complements")]
    assert subsets
    assert subsets == trials[6 : 6 + len(subsets)]  # behind the genes' initial values
    for trial in subsets:
        names = trial.label.partition(" ")[2].split(" + ")
        assert members(trial) == set(names)
        assert all(trial.genome[f"weight[{name}]"] == pytest.approx(1 / len(names), rel=1e-5) for name in names)
    for trial in trials[5:]:
        assert merged(trial) == members(trial)


@pytest.mark.slow
def test_a_pool_resumes_exactly_and_keeps_its_list_of_models(tiny_study: Study, models: Path, whole: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        evomerge.search("space.yaml", observer=StopAfter(2))
    with pytest.raises(KeyboardInterrupt):
        evomerge.resume("space", observer=StopAfter(5))
    save_tiny(models / "later", 5, near=models / "base", scale=0.2)
    said = Said()
    evomerge.resume("space", observer=said)
    assert facts("space") == whole
    assert any("models/later came after the launch, and takes no part" in line for line in said.lines)


@pytest.mark.slow
def test_a_pool_that_lost_a_model_says_so(tiny_study: Study, models: Path, whole: list[Any]) -> None:
    shutil.move("models/three", "three")
    message = r"'whole' cannot be resumed: .*models/three, which it was launched with, is gone; put it back"
    with pytest.raises(InputError, match=message):
        evomerge.resume("whole", trials=TRIALS + 1)
    shutil.move("three", "models/three")
    evomerge.resume("whole", trials=TRIALS + 1)
    assert facts("whole")[:TRIALS] == whole


@pytest.mark.slow
def test_a_merge_of_some_is_carried_over_into_a_space_of_all(tiny_study: Study, models: Path) -> None:
    result = evomerge.search(tiny_study(pool), run="some")
    trial = next(t for t in result.search.trials if t.genome and len(members(t)) == 2)

    def named(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        pool(space, fitness)
        space["sources"] = {name: f"models/{name}" for name in ("one", "two", "three")}
        space["genes"]["weight"] = {**WEIGHT, "per": ["sources", "layers"]}
        space["layers"] = 2

    first = evomerge.search(tiny_study(named), run="all", from_run=f"some:{trial.number}", trials=6).search.trials[5]
    assert first.digest == trial.digest
    assert not any(key.startswith("include") for key in first.genome)


@pytest.mark.parametrize("optimizer", ["gradient", {"name": "cma-es", "warm_start": "gradient"}])
def test_leaving_out_has_no_slope(tiny_study: Study, models: Path, optimizer: Any) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        pool(space, fitness)
        space["optimizer"] = optimizer

    with pytest.raises(InputError, match=r"include says which models are merged, .* write `include: false`"):
        evomerge.search(tiny_study(change))


# Trajectories


@pytest.fixture
def checkpoints(tiny_study: Study) -> list[Path]:
    folders, last = [], Path("models/base")
    for step in (20, 40, 100):
        last = save_tiny(Path(f"run/ckpt-{step}"), step, near=last, scale=0.1)
        folders.append(last)
    return folders


def along(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space.update(sources={"run": {"glob": "run/ckpt-*", "curve": "decay"}}, genes={"method": "linear"}, layers=1)
    space.update(optimizer={"name": "surrogate"}, budget={"trials": 8})
    fitness["slices"]["a"]["floor"] = {"of": "run", "margin": 0.5}


def test_a_trajectory_is_averaged_along_its_curve(tiny_study: Study, checkpoints: list[Path], tmp_path: Path) -> None:
    result = evomerge.search(tiny_study(along))
    trials = result.search.trials
    assert [t.label for t in trials[:3]] == ["base", "run", "uniform"]
    assert merged(trials[1]) == {"ckpt-100"}
    first = trials[3]
    assert first.genome == {"window[run]": 3.0, "exponent[run]": 0.5}
    evomerge.export("space", tmp_path / "first.yaml", trial=first.number, allow_infeasible=True)
    evomerge.merge(tmp_path / "first.yaml", tmp_path / "out")
    weights = [load_file(folder / "model.safetensors") for folder in checkpoints]
    written = load_file(tmp_path / "out" / "model.safetensors")
    shares = [(k / 3) ** 0.5 - ((k - 1) / 3) ** 0.5 for k in (1, 2, 3)]
    for name, tensor in written.items():
        wanted = sum(share * w[name] for share, w in zip(shares, weights, strict=True))
        assert tensor.allclose(wanted, atol=1e-6)
    save_tiny(Path("run/ckpt-140"), 9, near=checkpoints[-1])  # training goes on
    said = Said()
    evomerge.resume("space", trials=9, observer=said)
    assert any("run/ckpt-140 came after the launch" in line for line in said.lines)
    assert merged(evomerge.status("space").search.trials[8]) <= {"ckpt-20", "ckpt-40", "ckpt-100"}


def test_a_checkpoint_that_is_saved_twice_is_said(tiny_study: Study, checkpoints: list[Path]) -> None:
    shutil.copytree(checkpoints[1], "run/ckpt-60")
    with pytest.raises(InputError, match=r"run/ckpt-60 holds the files of run/ckpt-40; name each checkpoint once"):
        evomerge.search(tiny_study(along))


def test_a_dry_run_names_the_checkpoints(tiny_study: Study, checkpoints: list[Path]) -> None:
    (Path("run") / "ckpt-log").mkdir()
    found = dry_run(tiny_study(along))
    assert found["models"]["run"].startswith("3 checkpoints, ")
    assert found["sources"] == ["run/ckpt-*: left out ckpt-log (no checkpoint)"]
    assert found["genes"] == 2
