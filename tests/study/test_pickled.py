"""Sources with pickled weights: searched, resumed, evaluated and merged where that is allowed, and only there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import evomerge
from evomerge.checkpoints.pickled import pickles_allowed
from evomerge.cli import main
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.study.run.manifest import Environment

Study = Callable[..., Path]


@pytest.fixture
def space(tiny_study: Study) -> Path:
    """A study whose base and second source have no safetensors."""
    space = tiny_study()
    for name in ("base", "two"):
        file = Path(f"models/{name}/model.safetensors")
        torch.save(load_file(file), file.with_name("pytorch_model.bin"))
        file.unlink()
    return space


def test_a_search_remembers_that_it_may(space: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(space), "--dry-run"]) == 2
    assert "models/base holds pickled weights only" in capfd.readouterr().err
    assert main(["search", str(space), "--dry-run", "--allow-pickle"]) == 0
    assert main(["search", str(space), "--trials", "4"]) == 2
    assert main(["search", str(space), "--trials", "5", "--allow-pickle"]) in (0, 1)
    assert Environment.read(evomerge.status("runs/space").folder).launch.allow_pickle
    assert main(["resume", "space", "--trials", "6"]) in (0, 1)
    assert "[6/6]" in capfd.readouterr().err


@pytest.mark.slow
def test_workers_may_too(space: Path) -> None:
    result = evomerge.search(space, trials=5, workers=2, device="cpu", allow_pickle=True)
    assert [t.state for t in result.search.trials] == ["complete"] * 5


def test_models_are_evaluated_and_merged_as_if_they_were_safetensors(space: Path) -> None:
    Path("recipe.yaml").write_text(
        "merge_method: task_arithmetic\nbase_model: models/base\n"
        "models: [{model: models/one, parameters: {weight: 0.5}}, {model: models/two, parameters: {weight: 0.5}}]\n"
    )
    references = {"base": "models/base"}
    found = evomerge.evaluate("recipe.yaml", "fitness.yaml", references=references, allow_pickle=True)
    merged = evomerge.merge("recipe.yaml", "merged", allow_pickle=True)
    assert checkpoint_digest(merged) == found.digest
    with pickles_allowed(True):
        digest = checkpoint_digest("models/two")
    assert evomerge.evaluate("models/two", "fitness.yaml", references=references, allow_pickle=True).digest == digest
    for call in (
        lambda: evomerge.evaluate("models/two", "fitness.yaml", references=references),
        lambda: evomerge.path("models/one", "models/two", fitness="fitness.yaml", references=references),
        lambda: evomerge.merge("recipe.yaml", "other"),
    ):
        with pytest.raises(evomerge.errors.InputError, match="--allow-pickle"):
            call()
    assert not Path("other").exists()
