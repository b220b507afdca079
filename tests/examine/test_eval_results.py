"""Scores for the hub: whole public benchmarks, and no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

import evomerge
from evomerge.cli import main
from evomerge.errors import InputError
from evomerge.scoring.tasks.benchmarks import Benchmark

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of the tests stand for lm-eval's own, which would have to be downloaded."""
    known = {
        "a": Benchmark("tiny_a", "test", "org/tiny", "letters"),
        "b": Benchmark("tiny_b", "test", "org/tiny"),
        "c": Benchmark("tiny_a", "test", None),
        "d": Benchmark("tiny_b", "test", "org/tiny"),
    }
    for module in ("evomerge.examine.eval_results", "evomerge.scoring.tasks.benchmarks"):
        monkeypatch.setattr(f"{module}.benchmarks", lambda spec: {n: b for n, b in known.items() if n in spec.slices})


def more(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    fitness["slices"] = {
        "a": {"task": "tiny_a", "metric": "acc", "num_fewshot": 0},
        "b": {"task": "tiny_b", "metric": "acc"},
        "c": {"task": "tiny_a", "metric": "acc"},
        "d": {"task": "tiny_b", "metric": "acc", "items": 5},
        "e": {"task": "tiny_b", "metric": "acc"},
    }


def test_whole_benchmarks_are_written_as_the_hub_reads_them(
    tiny_study: Study, public: None, tmp_path: Path, capsys: Said
) -> None:
    tiny_study(more)
    command = ["evaluate", "models/one", "--fitness", "fitness.yaml", "--split", "all", "--eval-results"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    folder = tmp_path / "models/one/.eval_results"
    assert {f.name for f in folder.iterdir()} == {"a.yaml", "b.yaml"}
    (entry,) = parse_eval_result_entries(yaml.safe_load((folder / "a.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id) == ("org/tiny", "letters")
    assert entry.value == told["slices"]["a"]["score"]
    assert entry.notes == "lm-eval task tiny_a, acc, 40 items of test, 0-shot"
    (other,) = parse_eval_result_entries(yaml.safe_load((folder / "b.yaml").read_text()))
    assert other.task_id == "default"
    assert told["eval_results"]["left_out"].keys() == {"c", "d", "e"}
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "no result of d for the hub: `items` leaves some of its items out" in said


def test_what_a_search_chose_by_is_no_result(tiny_study: Study, public: None, tmp_path: Path, capsys: Said) -> None:
    evomerge.search(tiny_study(), trials=6)
    evomerge.export("space", checkpoint="out", allow_infeasible=True)
    options = ["--split", "all", "--eval-results", "--reference", "base=models/base"]
    assert main(["evaluate", "out", "--fitness", "fitness.yaml", *options]) in (0, 1)
    assert "no result of a for the hub: the search that made this model chose by its items" in capsys.readouterr().out
    assert not (tmp_path / "out/.eval_results").exists()


def test_results_do_not_keep_a_checkpoint_from_being_replaced(tiny_study: Study, tmp_path: Path) -> None:
    tiny_study()
    (tmp_path / "r.yaml").write_text("merge_method: passthrough\nmodels: [{model: models/one}]\n")
    folder = evomerge.merge("r.yaml", "out")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results/a.yaml").write_text("[]")
    evomerge.merge("r.yaml", "out", overwrite=True)
    (folder / ".eval_results").mkdir()
    shutil.copy(tmp_path / "r.yaml", folder / ".eval_results/notes.txt")
    with pytest.raises(InputError, match="holds the folder"):
        evomerge.merge("r.yaml", "out", overwrite=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["models/one", "--split", "holdout"], "the holdout split is a part of a benchmark; add --split all"),
        (["org/name@main", "--split", "all"], "org/name@main is no folder of a model"),
    ],
)
def test_parts_and_models_elsewhere_are_refused(tiny_study: Study, words: list[str], said: str, capsys: Said) -> None:
    tiny_study()
    assert main(["evaluate", *words, "--fitness", "fitness.yaml", "--eval-results"]) == 2
    assert said in capsys.readouterr().err
