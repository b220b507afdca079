"""A run's winner as a checkpoint: its card, its record, the weights that were scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import evomerge
from evomerge.cli import main
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.study.after.shipped import origin_of
from tests.report.page.made import MadeRun

Study = Callable[..., Path]


def hostile(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    fitness["slices"] = {"a | `x` <img>": fitness["slices"]["a"], "b": fitness["slices"]["b"]}


def table(card: str) -> list[list[str]]:
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_card_has_the_run_s_table(tiny_study: Study, tmp_path: Path) -> None:
    result = evomerge.search(tiny_study(), trials=8)
    assert result.winner is not None
    notes: list[str] = []
    text = evomerge.export("space", checkpoint="out", note=notes.append)
    folder = tmp_path / "out"
    assert checkpoint_digest(folder) == result.winner.digest
    assert not any("not the weights" in note for note in notes)
    card = (folder / "README.md").read_text()
    rows = table(card)
    assert [row[0] for row in rows] == ["model", "---", "floor", "base", "one", "two", "uniform average",
                                        "this merge, the winner"]  # fmt: skip
    assert rows[0][1:] == ["a (acc ↑)", "b (acc ↑)", "objective", "floors"]
    value = result.winner.scores["a"]
    assert rows[-1][1].startswith(f"{value:.4f} (")
    assert rows[-1][-1] == "pass"
    for fact in ("Items of the holdout split: a ", "seed `3`", "8 trials", "torch 2", "run `space`", text.split()[-1]):
        assert fact in card
    assert str(tmp_path) not in card
    assert ModelCard.load(folder / "README.md").data.tags[:3] == ["merge", "mergekit", "evomerge"]
    record = (folder / "reproduce.json").read_text()
    facts = json.loads(record)["search"]
    assert facts["trial"] == result.winner.number
    assert facts["slices"]["a"] == {"metric": "acc", "higher_is_better": True, "floor": 0.0, "task": "tiny_a"}
    assert facts["scores"]["this merge, the winner"] == dict(result.winner.scores)
    assert str(tmp_path) not in record
    assert (folder / "mergekit_config.yml").read_text().startswith("# evomerge run space, trial")


def test_names_of_slices_are_no_markup(tiny_study: Study, tmp_path: Path) -> None:
    evomerge.search(tiny_study(hostile), trials=5)
    evomerge.export("space", checkpoint="out", allow_infeasible=True)
    card = (tmp_path / "out/README.md").read_text()
    assert "<img" not in card.split("## Recipe")[0].replace("\\<img", "")
    assert "a \\| \\`x\\` \\<img\\>" in card
    assert all(len(row) == 5 for row in (line.replace("\\|", "").split(" | ") for line in card.splitlines()
                                         if line.startswith("| ")))  # fmt: skip


def test_a_trial_of_the_search_says_so(tiny_study: Study, tmp_path: Path) -> None:
    result = evomerge.search(tiny_study(), trials=8)
    other = next(t for t in result.search.merges() if t.number not in {x.number for x in result.holdout.trials})
    evomerge.export("space", trial=other.number, checkpoint="out", allow_infeasible=True)
    card = (tmp_path / "out/README.md").read_text()
    assert "Scores on the search items, by which the search chose" in card
    assert table(card)[-1][0] == "this merge"


def test_the_command_writes_recipe_and_checkpoint(
    tiny_study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evomerge.search(tiny_study(), trials=8)
    assert main(["export", "space", "--checkpoint", "out", "-o", "best.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"] == "out"
    assert main(["export", "space", "--checkpoint", "out"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["export", "space", "--checkpoint", "out", "--overwrite"]) == 0
    assert capsys.readouterr().out == "wrote out\n"
    assert main(["merge", "best.yaml", "again"]) == 0
    assert checkpoint_digest(tmp_path / "again") == checkpoint_digest(tmp_path / "out")


def test_a_recipe_alone_is_not_pushed(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    evomerge.search(tiny_study(), trials=5)
    assert main(["export", "space", "--push-to-hub", "x", "--allow-infeasible"]) == 2
    assert "a recipe alone is not pushed; add --checkpoint DIR" in capsys.readouterr().err


def close(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    """The base misses its floor by less than four decimals show."""
    fitness["slices"]["a"]["floor"] = {"of": "base", "margin": -4e-6}


def test_a_missed_floor_looks_missed(tiny_study: Study, tmp_path: Path) -> None:
    study = evomerge.search(tiny_study(close), trials=5)
    evomerge.export("space", checkpoint="out", allow_infeasible=True)
    rows = table((tmp_path / "out/README.md").read_text())
    floor, score = rows[2][1].removeprefix("≥ "), rows[3][1].removeprefix("✗ ").partition(" ")[0]
    assert float(score) < float(floor)
    page = study._repr_html_()
    assert f"<td>{floor}</td>" in page
    assert f"<td>{score} ✗</td>" in page


def bounded(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    fitness["confidence"] = 0.8


def test_the_card_says_what_is_held_to_the_floors(tiny_study: Study, tmp_path: Path) -> None:
    evomerge.search(tiny_study(bounded), trials=5)
    evomerge.export("space", checkpoint="out", allow_infeasible=True)
    card = (tmp_path / "out/README.md").read_text()
    assert "✗: misses the floor by its confidence bound." in card
    assert "- Floors are held against 80 % confidence bounds of the scores." in card
    assert json.loads((tmp_path / "out/reproduce.json").read_text())["search"]["confidence"] == 0.8


def test_the_card_names_a_parent_that_is_better(tmp_path: Path) -> None:
    state = evomerge.status(MadeRun(tmp_path, floor=0.1).make())
    poor = state.search.merges()[-1]
    best = state.search.best()
    assert best is not None
    words = "- Note: `two` itself passes every floor and scores better."
    assert words in origin_of(state, poor, state.search, "search", "").results
    assert words not in origin_of(state, best, state.search, "search", "").results
