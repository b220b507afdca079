"""Searches without evolution on tiny checkpoints: they end by themselves, and count and release as any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.study.observer import Observer
from evomerge.study.run.trial import Trial
from tests.conftest import save_tiny

Study = Callable[..., Path]


class Notes(Observer):
    """Keeps what is noted; stops like Ctrl-C in the middle of the n-th evaluation."""

    def __init__(self, count: int = 1000) -> None:
        self.left = count
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)

    def trial_started(self, trial: Trial) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def by_source(name: str, **options: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Of two sources, with all items and one weight each."""

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["genes"]["weight"]["per"] = ["sources"]
        space["optimizer"] = {"name": name, **options}
        fitness["pruning"] = False

    return change


def genomes(run: str) -> list[tuple[Any, ...]]:
    return [tuple(t.genome.values()) for t in evomerge.status(run).search.trials if t.kind == "search"]


def test_a_grid_ends_and_is_resumed(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """Nine points, of which base and sources are known, and the initial genome."""
    space = tiny_study(by_source("grid"))
    evomerge.search(space, run="whole")
    assert len(genomes("whole")) == 6
    assert len(set(genomes("whole"))) == 6
    assert genomes("whole")[0] == (0.4, 0.4)
    with pytest.raises(KeyboardInterrupt):
        evomerge.search(space, run="cut", observer=Notes(6))
    notes = Notes()
    evomerge.resume("cut", observer=notes)
    assert genomes("cut") == genomes("whole")
    assert "nothing is left to propose: all 9 points of the grid are scored" in notes.said
    again = Notes()
    evomerge.resume("cut", trials=50, observer=again)
    assert len(genomes("cut")) == 6
    assert "nothing is left to propose: all 9 points of the grid are scored" in again.said
    assert evomerge.status("cut").finished
    assert main(["resume", "cut", "--trials", "60"]) in (0, 1)
    assert "all 9 points" in capsys.readouterr().err


def test_another_optimizer_by_its_name(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """Racing in generations of the grid's own size, over layer groups as well."""
    tiny_study()
    assert main(["search", "space.yaml", "--optimizer", "grid", "--trials", "12"]) == 0
    assert len(genomes("space")) == 8
    assert main(["search", "space.yaml", "--run", "s", "--optimizer", "coordinate", "--trials", "12"]) == 0
    assert len(genomes("s")) == 8
    capsys.readouterr()


def test_soups(tiny_study: Study) -> None:
    """Of two sources, both soups are among the references: nothing is searched, and the average can win."""
    notes = Notes()
    result = evomerge.search(tiny_study(by_source("uniform-soup")), run="uniform", observer=notes)
    assert "nothing is left to propose: the uniform average is scored" in notes.said
    assert len(result.search.trials) == 4
    assert result.winner is not None
    assert result.winner.label == "uniform"
    evomerge.export("uniform", "soup.yaml")
    assert checkpoint_digest(evomerge.merge("soup.yaml", "out")) == result.winner.digest
    greedy = evomerge.search("space.yaml", run="greedy", optimizer="greedy-soup", observer=notes)
    assert len(greedy.search.trials) == 4
    assert notes.said[-1].startswith("nothing is left to propose: every source was tried; in the soup are ")


def test_a_greedy_soup_of_three_mixes_the_best_two_first(tiny_study: Study) -> None:
    def three(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        save_tiny(Path("models/three"), 4, near=Path("models/base"), scale=0.2)
        by_source("greedy-soup")(space, fitness)
        space["sources"]["three"] = "models/three"

    result = evomerge.search(tiny_study(three))
    mixtures = [t for t in result.search.trials if t.kind == "search"]
    assert 1 <= len(mixtures) <= 2
    assert sorted(mixtures[0].genome.values()) == [0.0, 0.5, 0.5]
    ranked = [t.label for t in result.search.ranked() if t.is_parent and t.label != "base"]
    assert mixtures[0].genome[f"weight[{ranked[-1]}]"] == 0.0
