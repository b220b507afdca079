"""Models that are not language models: a classifier of images, built and scored by the functions of docs/files.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import evomerge
from evomerge.cli import main

DOCS = (Path(__file__).parents[2] / "docs/files.md").read_text()
CODE = next(block for block in re.findall(r"```python\n(.*?)```", DOCS, re.S) if "def build(" in block)

Study = Callable[..., Path]


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def digits(labels: list[int], count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy 8x8 images, one pattern for each of four labels."""
    patterns = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.tensor(labels)[torch.randint(len(labels), (count,), generator=draw)]
    return patterns[chosen] + 1.5 * torch.randn(count, 8, 8, generator=draw), chosen


def trained(model: nn.Module, labels: list[int], steps: int, seed: int) -> nn.Module:
    images, wanted = digits(labels, 512, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), wanted).backward()
        optimizer.step()
    return model


def save(model: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that knows little, and two specialists that know two labels each and forgot the others."""
    root = tmp_path_factory.mktemp("classifiers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = trained(network(), [0, 1, 2, 3], 3, 1)
        save(base, root / "base")
        for name, labels in (("low", [0, 1]), ("high", [2, 3])):
            own = network()
            own.load_state_dict(base.state_dict())
            save(trained(own, labels, 60, 2), root / name)
    return root


@pytest.fixture
def study(tmp_path: Path, classifiers: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Writes the space, the fitness file with its data, and the functions; returns the space's file."""
    monkeypatch.chdir(tmp_path)
    for name, labels, seed in (("low", [0, 1], 3), ("high", [2, 3], 4)):
        rows = zip(*(part.tolist() for part in digits(labels, 120, seed)), strict=True)
        text = "".join(json.dumps({"image": image, "label": label}) + "\n" for image, label in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)

    def make(code: str = CODE, **changes: Any) -> Path:
        (tmp_path / "digits.py").write_text(code)
        space = {
            "base": str(classifiers / "base"),
            "sources": {name: str(classifiers / name) for name in ("low", "high")},
            "layers": "each",
            "genes": {
                "method": "task_arithmetic",
                "weight": {"low": 0.0, "high": 1.2, "init": 0.3, "per": ["sources", "layers"]},
            },
            "optimizer": {"name": "cma-es", "seed": 1},
            "budget": {"trials": 40},
            "fitness": "fitness.yaml",
        }
        slices = {n: {"python": "digits:correct", "data": f"{n}.jsonl", "floor": 0.85} for n in ("low", "high")}
        fitness = {"model": "digits:build", "slices": slices, **changes}
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
        (tmp_path / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
        return tmp_path / "space.yaml"

    return make


def test_a_search_finds_a_classifier_that_keeps_both_skills(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evomerge.search(study())
    parents = {t.label: t.scores for t in result.search.trials if t.is_parent}
    assert parents["low"]["high"] < 0.5
    assert parents["high"]["low"] < 0.5
    assert result.winner is not None
    assert min(result.winner.scores.values()) >= 0.85
    assert len(result.winner.genome) == 2 * 3  # weights of two sources in three numbered layers

    evomerge.export("space", "best.yaml")
    folder = evomerge.merge("best.yaml", "merged")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "mergekit_config.yml",
        "model.safetensors",
        "reproduce.json",
    ]
    assert load_file(folder / "model.safetensors").keys() == network().state_dict().keys()
    for model in (folder, "best.yaml"):
        scored = evomerge.evaluate(model, "fitness.yaml")
        assert {n: s.value for n, s in scored.scores.items()} == result.winner.scores
        assert scored.digest == result.winner.digest

    capsys.readouterr()
    assert main(["path", "merged", str(tmp_path / "low"), "--fitness", "fitness.yaml"]) == 2  # no such folder
    base = result.search.trials[0].recipe.models()[0]
    assert main(["path", base, "merged", "--fitness", "fitness.yaml", "--points", "3"]) in (0, 1)


def test_a_run_goes_on_only_with_the_same_builder(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    evomerge.search(study(), trials=6)
    assert len(evomerge.resume("space", trials=8).search.trials) == 8
    file = Path("fitness.yaml")
    Path("other.py").write_text(CODE)
    Path("others.yaml").write_text(file.read_text().replace("model: digits:build", "model: other:build"))
    assert main(["rank", "space", "--fitness", "others.yaml"]) == 2
    assert "others.yaml:1: model: model is" in capsys.readouterr().err
    study(CODE + "\n# another\n")
    assert main(["resume", "space"]) == 2
    assert "changed" in capsys.readouterr().err


def test_a_dry_run_needs_no_language_model(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study()
    assert main(["search", "space.yaml", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["genes"] == 6


BROKEN = {
    "def build(state): pass": r"does not fit: it is called as build\(state, folder\)",
    "def build(state, folder): pass": "returned None, expected a model",
    "def build(state, folder): return state['9.weight']": r"raised KeyError: '9.weight' \(digits.py:1\)",
    "import sys\ndef build(state, folder): sys.exit('no')": r"raised SystemExit: no \(digits.py:2\)",
    "import sys\ndef build(state, folder): pass\nsys.exit(3)": r"cannot be loaded \(SystemExit: 3 \(digits.py:3\)\)",
    "build = 3": "is not callable; name a function",
}


@pytest.mark.parametrize(("code", "line"), BROKEN.items())
def test_what_cannot_be_built_is_said_before_a_run_is_there(
    code: str, line: str, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    study(f"{code}\ndef correct(model, tokenizer, items): return [1.0] * len(items)\n")
    assert main(["search", "space.yaml"]) == 2
    told = capsys.readouterr().err
    assert re.search(f"error: .*fitness.yaml:1: model: digits:build {line}", told.splitlines()[-1])
    assert "Traceback" not in told
    assert not Path("runs").exists()


def test_lm_eval_tasks_need_a_language_model(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study(slices={"low": {"task": "hellaswag", "metric": "acc"}})
    assert main(["search", "space.yaml"]) == 2
    line = "slices.low.task: the lm-eval task 'hellaswag' needs a language model, and `model` builds another one"
    assert line in capsys.readouterr().err


def test_without_a_builder_a_missing_configuration_is_told(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    study(model="digits:build")
    file = Path("fitness.yaml")
    file.write_text(file.read_text().replace("model: digits:build\n", ""))
    base = yaml.safe_load(Path("space.yaml").read_text())["base"]
    for command in (["search", "space.yaml"], ["evaluate", base, "--fitness", "fitness.yaml"]):
        assert main(command) == 2
        assert "has no config.json; give a whole model folder" in capsys.readouterr().err


def test_batch_statistics_and_their_counters_merge(tmp_path: Path) -> None:
    for name, seed in (("base", 0), ("one", 1)):
        model = nn.ModuleDict({"stem": nn.Conv2d(1, 4, 3), "norm": nn.BatchNorm2d(4), "head": nn.Linear(4, 2)})
        model["norm"].train()
        for _ in range(seed + 1):
            model["norm"](torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(seed)))
        save(model, tmp_path / name)
    inputs = [{"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in ("base", "one")]
    (tmp_path / "mean.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": inputs}))
    merged = load_file(evomerge.merge(tmp_path / "mean.yaml", tmp_path / "mean") / "model.safetensors")
    parents = [load_file(tmp_path / name / "model.safetensors") for name in ("base", "one")]
    torch.testing.assert_close(merged["norm.running_mean"], sum(p["norm.running_mean"] for p in parents) / 2)
    assert [int(p["norm.num_batches_tracked"]) for p in (merged, *parents)] == [1, 1, 2]
