"""Configurations of mergekit-evolve become files that a search takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import evomerge
from evomerge.cli import main
from tests.conftest import write_task

Said = pytest.CaptureFixture[str]


@pytest.fixture
def place(tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models, two tasks beside the configuration, and the current folder."""
    shutil.copytree(tiny_models, tmp_path / "models")
    (tmp_path / "evolve").mkdir()
    write_task(tmp_path / "evolve", "tiny_a", 1)
    write_task(tmp_path / "evolve", "tiny_b", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(place: Path, genome: dict[str, Any], **others: Any) -> str:
    data = {"genome": genome, "tasks": [{"name": "tiny_a", "weight": 1.0, "metric": "acc,none"}, "tiny_b"], **others}
    (place / "evolve/config.yml").write_text(yaml.safe_dump(data))
    return "evolve/config.yml"


def written(place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return yaml.safe_load((place / "space.yaml").read_text()), yaml.safe_load((place / "fitness.yaml").read_text())


TIES = {"models": ["models/one", "models/two"], "base_model": "models/base", "merge_method": "ties"}


def test_a_whole_configuration_runs(place: Path, capsys: Said) -> None:
    genome = {
        **TIES,
        "layer_granularity": 1,
        "filters": ["self_attn", "mlp.down_proj"],
        "normalize": False,
        "allow_negative_weights": True,
        "tokenizer_source": "base",
    }
    file = configured(place, genome, limit=12, num_fewshot=1, shuffle=True, random_init=True, speed=3)
    assert main(["init", "--from-mergekit-evolve", file, "--trials", "6", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    space, fitness = written(place)
    axes = ["sources", "layers", "modules"]
    assert space == {
        "base": "models/base",
        "sources": {"one": "models/one", "two": "models/two"},
        "tokenizer": "base",
        "dtype": "bfloat16",
        "layers": 2,
        "modules": {"self_attn": "self_attn", "mlp_down_proj": "mlp.down_proj"},
        "genes": {
            "method": "ties",
            "weight": {"low": -1.0, "high": 1.2, "init": 0.5, "per": axes},
            "density": {"low": 0.0, "high": 1.0, "init": 1.0, "per": axes},
        },
        "fixed": {"normalize": False},
        "optimizer": {"name": "cma-es", "seed": 0},
        "budget": {"trials": 6},
        "fitness": "fitness.yaml",
    }
    more = {"items": 12, "num_fewshot": 1}
    assert fitness == {
        "include": ["evolve"],
        "objective": "weighted_mean",
        "split": {"search": 0.5, "seed": 0},
        "slices": {
            "tiny_a": {"task": "tiny_a", "metric": "acc", "weight": 1.0, **more},
            "tiny_b": {"task": "tiny_b", "metric": "acc", "weight": 1.0, **more},
        },
    }
    assert told["genes"] == 2 * 2 * 2 * 3
    for key in ("speed", "shuffle", "random_init", "apply_chat_template"):
        assert any(note.startswith(f"no counterpart: {key}") for note in told["notes"]), key
    assert "# no counterpart: speed\n" in (place / "space.yaml").read_text()
    assert evomerge.search("space.yaml").search.n_finished == 6


@pytest.mark.parametrize(
    ("genome", "method", "genes", "said"),
    [
        ({**TIES, "merge_method": "dare_ties"}, "dare_ties", 4, "not bounded"),
        ({**TIES, "merge_method": "task_arithmetic", "layer_granularity": 1, "smooth": True}, "task_arithmetic", 4, ""),
        ({"models": ["models/base", "models/one", "models/two"], "merge_method": "linear"}, "task_arithmetic", 2,
         "linear without a base"),
        ({"models": ["models/base", "models/one"], "merge_method": "slerp", "layer_granularity": 1}, "slerp", 2, ""),
        ({"models": ["models/one", "models/two"], "base_model": "models/base", "merge_method": "slerp"},
         "multislerp", 2,
         "written as multislerp"),
        ({**TIES, "models": ["models/base", "models/one", {"model": {"path": "models/two"}}]}, "ties", 4,
         "the base is a model, too"),
    ],
)  # fmt: skip
def test_every_method_has_a_counterpart(
    place: Path, genome: dict[str, Any], method: str, genes: int, said: str
) -> None:
    result = evomerge.init(from_mergekit_evolve=configured(place, genome))
    space, _ = written(place)
    assert space["genes"]["method"] == method
    assert "&id" not in (place / "space.yaml").read_text()  # it is to be read, and changed, by people
    assert result.genes == genes
    assert any(said in note for note in result.notes)
    assert space.get("interpolate", False) is bool(genome.get("smooth"))
    assert main(["search", "space.yaml", "--dry-run"]) == 0


def test_negative_weights_and_filters_of_metrics(place: Path) -> None:
    tasks = [{"name": "tiny_a", "weight": -2, "metric": "acc,none"}, {"name": "tiny_a", "metric": "acc"}]
    evomerge.init(from_mergekit_evolve=configured(place, TIES, tasks=tasks, apply_chat_template=False))
    slices = written(place)[1]["slices"]
    assert slices["tiny_a"] == {"task": "tiny_a", "metric": "acc", "weight": 2.0, "direction": "lower"}
    assert slices["tiny_a-2"]["weight"] == 1.0


@pytest.mark.parametrize(
    ("genome", "others", "said"),
    [
        ({**TIES, "merge_method": "magic"}, {}, "merge_method"),
        ({**TIES, "layer_granularity": 3}, {}, "2 layers are no multiple of 3"),
        ({k: v for k, v in TIES.items() if k != "base_model"}, {}, "needs a base_model"),
        ({**TIES, "models": ["models/absent"]}, {}, "absent"),
        ({**TIES, "models": []}, {}, "names no model"),
        ({**TIES, "models": ["models/base"]}, {}, "holds the base alone"),
        ({**TIES, "tokenizer_source": "models/other"}, {}, "is no model of the genome"),
        ({**TIES, "filters": 3}, {}, "filters"),
        (TIES, {"tasks": ["no_such_task_of_any"]}, "there is no task 'no_such_task_of_any'"),
        (TIES, {"tasks": []}, "names no task"),
        (TIES, {"tasks": [{"name": "tiny_a", "metric": "f7"}]}, "has no metric 'f7'"),
        (TIES, {"limit": "many"}, "limit"),
    ],
)
def test_what_is_wrong_is_one_line_and_writes_nothing(
    place: Path, genome: dict[str, Any], others: dict[str, Any], said: str, capsys: Said
) -> None:
    assert main(["init", "--from-mergekit-evolve", configured(place, genome, **others)]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert said in told
    assert not (place / "space.yaml").exists()


def test_the_command_takes_one_of_the_two(place: Path, capsys: Said) -> None:
    file = configured(place, TIES)
    assert main(["init", "models/base", "models/one", "--from-mergekit-evolve", file]) == 2
    assert "leave the others out" in capsys.readouterr().err
    assert main(["init"]) == 2
    assert main(["init", "--from-mergekit-evolve", "evolve/tiny_a.yaml"]) == 2
    assert "is no configuration of mergekit-evolve" in capsys.readouterr().err
