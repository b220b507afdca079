"""Sources with `align`: the copy in the run's folder is what is merged, exported and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import evomerge
from evomerge.cli import main
from evomerge.study.aligned import STAMP
from evomerge.study.observer import Observer
from tests.examine.test_align import same, scramble

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]
COPY = Path("runs/space/aligned/two")


def aligned(align: Any = True) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["sources"]["two"] = {"path": "models/moved", "align": align}
        space["budget"] = {"trials": 6}

    return change


def test_the_copy_is_searched_exported_and_resumed(tiny_study: Study, capsys: Said) -> None:
    tiny_study(aligned())
    scramble(Path("models/two"), Path("models/moved"))
    result = evomerge.search("space.yaml", device="cpu")
    assert same(COPY, Path("models/two"))
    assert json.loads((COPY / STAMP).read_text())["moved"] > 0.5
    environment = json.loads(Path("runs/space/environment.json").read_text())
    assert environment["identity"]["checkpoints"].keys() == {"base", "one", "two"}
    assert environment["identity"]["space file"]["sources"]["two"]["align"] is True
    # Scores are those of a search over the model in its own order.
    plain = evomerge.search("space.yaml", run="plain", settings=["sources.two=models/two"], device="cpu")
    assert [t.scores for t in result.search.trials] == [t.scores for t in plain.search.trials]
    # The recipe names the copy, and rebuilds the candidate from it.
    number = result.search.trials[-1].number
    assert main(["export", "space", "--trial", str(number), "--allow-infeasible", "-o", "best.yaml"]) == 0
    recipe = yaml.safe_load(Path("best.yaml").read_text())
    assert str(COPY) in json.dumps(recipe)
    evomerge.merge("best.yaml", "merged")
    assert load_file("merged/model.safetensors")
    # Another search begins with its winner.
    genome = result.search.trials[-1].genome
    begun = evomerge.search("space.yaml", run="begun", from_run=f"space:{number}", device="cpu")
    assert genome in [trial.genome for trial in begun.search.trials]
    # A resume takes the copy as it is, and needs the original no more.
    Path("models/moved/model.safetensors").unlink()
    before = (COPY / "model.safetensors").stat().st_mtime_ns
    assert len(evomerge.resume("space", trials=8).search.trials) == 8
    assert (COPY / "model.safetensors").stat().st_mtime_ns == before
    shutil.rmtree(COPY)
    capsys.readouterr()
    assert main(["resume", "space", "--trials", "9"]) == 2
    assert "has lost the aligned copy of two" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_aligned(tiny_study: Study, capsys: Said) -> None:
    tiny_study(aligned())
    scramble(Path("models/two"), Path("models/moved"))
    assert main(["search", "space.yaml", "--dry-run"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("aligned: "))
    assert "two onto the base, 5 groups of units (specification llama)" in line
    assert line.endswith(str(COPY.absolute()))
    assert not Path("runs").exists()


def test_a_launch_that_fails_leaves_nothing_and_one_that_died_is_used(tiny_study: Study) -> None:
    tiny_study(aligned())
    scramble(Path("models/two"), Path("models/moved"))

    class Fails(Observer):
        def phase(self, message: str) -> None:
            if message.startswith("building"):
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        evomerge.search("space.yaml", device="cpu", observer=Fails())
    assert not Path("runs/space").exists()
    # As if a launch had been killed: whole copies of the same models are used, others are written again.
    evomerge.search("space.yaml", run="first", device="cpu")
    shutil.copytree("runs/first/aligned", "runs/space/aligned")
    before = (COPY / "model.safetensors").stat().st_mtime_ns
    evomerge.search("space.yaml", device="cpu")
    assert (COPY / "model.safetensors").stat().st_mtime_ns == before
    shutil.copytree("runs/first/aligned", "runs/other/aligned")
    stamp = json.loads((Path("runs/other/aligned/two") / STAMP).read_text())
    (Path("runs/other/aligned/two") / STAMP).write_text(json.dumps({**stamp, "base": "another"}))
    shutil.copytree("runs/first/aligned/two", "runs/other/aligned/gone")
    evomerge.search("space.yaml", run="other", device="cpu")
    assert [copy.name for copy in Path("runs/other/aligned").iterdir()] == ["two"]
    assert json.loads((Path("runs/other/aligned/two") / STAMP).read_text()) == stamp


@pytest.mark.parametrize(
    ("align", "said"),
    [
        ("nothing.yaml", "space.yaml:5: sources.two.path: there is no specification"),
        (3, "is 3, neither true nor a file"),
    ],
)
def test_what_is_wrong_with_it_is_told_with_its_line(tiny_study: Study, capsys: Said, align: Any, said: str) -> None:
    tiny_study(aligned(align))
    scramble(Path("models/two"), Path("models/moved"))
    for dry in ([], ["--dry-run"]):
        assert main(["search", "space.yaml", *dry]) == 2
        assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_an_adapter_is_told_with_its_line(tiny_study: Study, capsys: Said) -> None:
    tiny_study(aligned())
    adapter = Path("models/moved")
    adapter.mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    halves = {f"{name}.lora_A.weight": torch.ones(2, 16), f"{name}.lora_B.weight": torch.ones(16, 2)}
    save_file(halves, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    for dry in ([], ["--dry-run"]):
        assert main(["search", "space.yaml", *dry]) == 2
        error = capsys.readouterr().err
        assert "space.yaml:5: sources.two.path: " in error
        assert "is a LoRA adapter" in error
    assert not Path("runs").exists()


def test_another_architecture_is_told_with_its_line(tiny_study: Study, capsys: Said) -> None:
    tiny_study(aligned())
    shutil.copytree("models/two", "models/moved")
    config = Path("models/moved/config.json")
    config.write_text(config.read_text().replace('"llama"', '"mistral"').replace("LlamaFor", "MistralFor"))
    assert main(["search", "space.yaml", "--dry-run"]) == 2
    assert "sources.two" in capsys.readouterr().err
