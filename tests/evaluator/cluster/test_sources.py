"""What a node has of the run's models, by their files alone: no cluster."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evomerge.checkpoints import references
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError
from evomerge.evaluator.cluster.sources import anywhere, parts, prepared
from evomerge.files.pair import read_files


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_models, tmp_path / "models")
    return tmp_path / "models"


def test_what_is_there_is_held_against_the_runs_files(models: Path) -> None:
    found = parts([Checkpoint.open(str(models / name)) for name in ("base", "one")])
    assert [part.reference for part in found] == [str(models / "base"), str(models / "one")]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {name for name, _ in found[0].files}
    assert "generation_config.json" in found[0].others
    assert prepared(found, None) == {}
    weights = models / "one/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"it has other bits of .*/one \(model\.safetensors\); copy the run's model"):
        prepared(found, None)
    weights.unlink()
    with pytest.raises(InputError, match=r"it has other bits of .*/one \(model\.safetensors\)"):
        prepared(found, None)


def test_a_model_that_is_elsewhere_keeps_its_name(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "_elsewhere", {})
    references.relocate({"/nowhere/base": str(models / "base"), "org/one@abc": str(models / "one")})
    base, one = Checkpoint.open("/nowhere/base"), Checkpoint.open("org/one@abc")
    assert [c.resolved() for c in (base, one)] == ["/nowhere/base", "org/one@abc"]
    assert [c.path for c in (base, one)] == [models / "base", models / "one"]
    assert base.fingerprint() == Checkpoint.open(str(models / "base")).fingerprint()


def test_a_space_means_the_same_on_every_node(models: Path) -> None:
    (models.parent / "fitness.yaml").write_text("slices: {a: {task: arc_easy, metric: acc}}")
    space = models.parent / "space.yaml"
    space.write_text(
        "base: models/base\nsources: {one: models/one}\nfitness: fitness.yaml\n"
        "genes: {method: linear, weight: {low: 0.0, high: 1.0, per: [sources]}}\n"
        "ray: {num_gpus: 2, labels: {card: x}, runtime_env: {env_vars: {A: b}}}\n"
    )
    spec, _ = read_files(space)
    opened = {"base": Checkpoint.open(str(models / "base")), "one": Checkpoint.open(str(models / "one"))}
    moved = anywhere(spec, opened)
    assert (moved.base.path, moved.sources["one"].path) == (str(models / "base"), str(models / "one"))
    assert (moved.ray.num_gpus, moved.ray.labels) == (2, {"card": "x"})
