"""Sizes as slices: of merges of different depth, in a search, a race, a front, and after it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import evomerge
from evomerge.cli import main
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.space.space import Space
from evomerge.study.observer import Observer
from evomerge.study.racing import race
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.items import load_items
from evomerge.types import Genome

from ..conftest import save_tiny, write_task
from .test_search import StopAfter, facts

Study = Callable[..., Path]
Said = pytest.CaptureFixture[str]

DEPTH = {"measure": "layers", "weight": 0}
SIZE = {"measure": "parameters", "weight": 0}
ONE_LAYER = """
merge_method: passthrough
slices: [{sources: [{model: models/base, layer_range: [0, 1]}]}]
"""
DEEPER_IS_BETTER = """
def score(model, tokenizer, items):
    size = float(model.model.layers[0].mlp.up_proj.weight.detach().abs().mean())
    return [len(model.model.layers) / 4 + min(size, 1) / 4] * len(items)
"""
THREE_LAYERS = """
merge_method: passthrough
slices:
- sources: [{model: models/base, layer_range: [0, 2]}]
- sources: [{model: models/base, layer_range: [1, 2]}]
"""


def sized(**slices: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"].update({"depth": DEPTH, "size": SIZE, **slices})

    return change


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges whose first weight is below 0.4 lose their second layer: a space whose candidates differ in depth."""
    whole = Space.recipe

    def recipe(self: Space, genome: Genome) -> Recipe:
        merge = whole(self, genome)
        if not genome or float(next(iter(genome.values()))) >= 0.4:
            return merge
        stage = replace(merge.documents[-1], name="whole")
        first = Document("passthrough", (Slice((Input("whole", (0, 1)),)),), dtype=stage.dtype)
        return Recipe((*merge.documents[:-1], stage, first))

    monkeypatch.setattr(Space, "recipe", recipe)


def stored(folder: Path) -> int:
    """The parameters of a checkpoint's file."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def evaluated(model: str, capsys: Said) -> dict[str, Any]:
    code = main(["evaluate", model, "--fitness", "fitness.yaml", "--reference", "base=models/base", "--json"])
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if told["feasible"] else 1)
    return told["slices"]  # type: ignore[no-any-return]


def test_sizes_are_those_of_the_checkpoint_that_is_written(tiny_study: Study, capsys: Said) -> None:
    """A layer that stands twice counts twice, though a model in memory might share it."""
    tiny_study(sized())
    for name, text, layers in (("one", ONE_LAYER, 1), ("three", THREE_LAYERS, 3)):
        Path(f"{name}.yaml").write_text(text)
        scores = evaluated(f"{name}.yaml", capsys)
        assert main(["merge", f"{name}.yaml", f"merged-{name}"]) == 0
        capsys.readouterr()
        assert (scores["depth"]["score"], scores["size"]["score"]) == (layers, stored(Path(f"merged-{name}")))
        assert evaluated(f"merged-{name}", capsys)["size"]["score"] == scores["size"]["score"]
        assert scores["depth"]["higher_is_better"] is False
        assert (scores["depth"]["items"], scores["depth"]["stderr"]) == (0, 0.0)
        assert scores["depth"]["interval"] == [layers, layers], "one layer is no share of one item"


def test_a_tied_head_counts_once(tiny_study: Study, capsys: Said) -> None:
    tiny_study(sized())
    save_tiny(Path("models/tied"), 5, tie_word_embeddings=True)
    apart = evaluated("models/base", capsys)["size"]["score"]
    tied = evaluated("models/tied", capsys)["size"]["score"]
    assert apart - tied == 13 * 16  # rows of the vocabulary, times the width
    assert tied == stored(Path("models/tied"))


@pytest.mark.parametrize(
    ("floor", "passes"),
    [(2, True), (1, False), ({"of": "base", "margin": 0}, True), ({"of": "base", "margin": -1}, False),
     ({"of": "base", "keep": 2.0}, False)],
)  # fmt: skip
@pytest.mark.parametrize("confidence", [None, 0.95])
def test_a_floor_is_the_most_that_is_allowed(
    tiny_study: Study, capsys: Said, floor: Any, passes: bool, confidence: float | None
) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        sized(depth={**DEPTH, "floor": floor})(space, fitness)
        fitness["confidence"] = confidence

    tiny_study(change)
    depth = evaluated("models/one", capsys)["depth"]
    assert (depth["score"], depth["bound"], depth["passed"]) == (2, 2, passes)


def test_tables_show_sizes_as_whole_numbers(tiny_study: Study, capsys: Said) -> None:
    tiny_study(sized(depth={**DEPTH, "floor": 1}))
    assert main(["evaluate", "models/one", "--fitness", "fitness.yaml", "--reference", "base=models/base"]) == 1
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert "layers ↓" in lines["depth"]
    assert [cell.strip() for cell in lines["depth"].split("│")[3:7]] == ["-", "2", "exact", "≤ 1"]


@pytest.mark.usefixtures("pruned")
def test_a_front_of_size_and_score(tiny_study: Study, capsys: Said) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["optimizer"] = {"name": "nsga-ii", "seed": 3}
        space["budget"]["trials"] = 24
        fitness["objective"] = "pareto"
        Path("skill.py").write_text(DEEPER_IS_BETTER)
        Path("items.jsonl").write_text("".join(json.dumps({"id": i}) + "\n" for i in range(20)))
        b = {"python": "skill:score", "data": "items.jsonl", "range": [0, 1]}
        fitness["slices"] = {"b": b, "size": {"measure": "parameters"}}

    space = tiny_study(change)
    evomerge.search(space, run="whole")
    state = evomerge.status("whole")
    front = [t for t in state.search.front() if t.kind == "search"]
    sizes = {-t.scores["size"] for t in front}
    assert len(sizes) == 2, "the best of either size"
    assert all(t.scores["size"] == int(t.scores["size"]) for t in state.search.trials)
    small = min(front, key=lambda t: -t.scores["size"])
    other = max(front, key=lambda t: -t.scores["size"])
    assert small.scores["b"] < other.scores["b"]
    assert other.objective == other.scores["b"], "a size is no part of the number beside a front"
    with pytest.raises(KeyboardInterrupt):
        evomerge.search(space, run="parts", observer=StopAfter(11))
    evomerge.resume("parts")
    assert facts("parts") == facts("whole")
    # What is written is what was measured.
    Path("small.yaml").write_text(evomerge.export("whole", trial=small.number, allow_infeasible=True))
    assert main(["merge", "small.yaml", "small"]) == 0
    assert stored(Path("small")) == -small.scores["size"]
    capsys.readouterr()
    # After a search: compare, rank, the table of trials.
    assert main(["compare", "whole", str(small.number), str(other.number), "--json"]) == 0
    size = json.loads(capsys.readouterr().out)["slices"]["size"]
    assert (size["test"], size["p"], size["items"]) == ("exact", 0.0, 0)
    assert size["difference"] == other.scores["size"] - small.scores["size"]
    limited = Path("fitness.yaml").read_text().replace("measure: parameters", "measure: parameters\n    floor: 3000")
    Path("limited.yaml").write_text(limited.replace("objective: pareto", "objective: mean"))
    ranked = evomerge.rank("whole", "limited.yaml")
    assert all(not ranked.search.outcome(t).feasible for t in ranked.search.trials if t.number == other.number)
    table = state.trials_dataframe()
    assert set(table[table.kind == "search"].scores_size) == {stored(Path("small")), -other.scores["size"]}


@pytest.mark.slow
@pytest.mark.usefixtures("pruned")
def test_a_size_races_with_the_items(tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known of every candidate, raced or not, and no item of it is counted; a race that is cut short goes on."""
    monkeypatch.setattr(race, "NOISE", math.inf)
    monkeypatch.setattr(race, "DOUBT", 0.4)
    monkeypatch.setattr(race.Race, "_first_part", 0.0)
    write_task(tmp_path / "tasks", "tiny_a", 1, count=240)
    write_task(tmp_path / "tasks", "tiny_b", 2, count=160)

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        sized(depth={"measure": "layers", "weight": 0, "floor": 1}, size={"measure": "parameters"})(space, fitness)
        fitness["pruning"] = True
        space["budget"]["trials"] = 20

    space = tiny_study(change)
    evomerge.search(space, run="whole")
    trials = evomerge.status("whole").search.trials
    raced = [t for t in trials if t.state == "pruned"]
    assert raced
    folder = RunFolder.named("whole").items
    for trial in trials:
        layers = 1 if trial.genome and float(next(iter(trial.genome.values()))) < 0.4 else 2
        assert trial.scores["depth"] == -layers, trial
        assert trial.errors.get("depth", 0.0) == 0.0
        items = load_items(folder, trial.number, "search")
        assert len(items["a"]) + len(items["b"]) == trial.evaluated
        assert [item.raw for item in items["depth"].values()] == [layers]
    early = [t for t in raced if t.pruned_by == "early_stop"]
    assert all("misses the floor of depth: 2" in str(t.reason) for t in early if "depth" in str(t.reason))
    assert any("depth" in str(t.reason) for t in early), "a floor that a size misses is missed at once"
    with pytest.raises(KeyboardInterrupt):
        evomerge.search(space, run="parts", observer=StopAt(9))
    with pytest.raises(KeyboardInterrupt):
        evomerge.resume("parts", observer=StopAt(5))
    evomerge.resume("parts")
    assert facts("parts") == facts("whole")


class StopAt(Observer):
    """Ctrl-C as the n-th piece of work begins."""

    def __init__(self, count: int) -> None:
        self._left = count

    def trial_started(self, trial: Any) -> None:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt


def test_a_mean_of_scores_and_sizes_is_doubted(tiny_study: Study, capsys: Said) -> None:
    space = tiny_study(sized(depth={"measure": "layers"}))
    assert main(["search", str(space), "--dry-run"]) == 0
    assert "mean makes one number of scores and of layers" in capsys.readouterr().out
    tiny_study(sized())
    assert main(["search", str(space), "--dry-run"]) == 0
    assert "one number" not in capsys.readouterr().out


def test_what_a_size_does_not_go_with(tiny_study: Study, capsys: Said) -> None:
    def geometric(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        sized(depth={"measure": "layers"})(space, fitness)
        fitness["objective"] = "geometric_mean"

    def slopes(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        sized(depth={"measure": "layers"})(space, fitness)
        space["optimizer"] = {"name": "gradient", "seed": 3}

    for change, says in ((geometric, "fewer layers are better"), (slopes, "no slope for gradient to follow")):
        assert main(["search", str(tiny_study(change)), "--dry-run"]) == 2
        assert says in capsys.readouterr().err


def test_references_of_one_size_are_no_mistake(tiny_study: Study) -> None:
    told: list[str] = []

    class Listening(Observer):
        def warn(self, message: str) -> None:
            told.append(message)

    evomerge.search(tiny_study(sized()), trials=6, observer=Listening())
    assert not [line for line in told if "depth" in line or "size" in line]


def test_layers_are_pruned_under_a_floor(tiny_study: Study) -> None:
    """A space of data flow: its candidates differ in depth, and the smallest one that is good enough is searched."""

    def flow(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space.clear()
        space |= {"space": "dataflow", "base": "models/base", "sources": {"one": "models/one"}, "max_layers": 4}
        space |= {"path": ["base", "one"], "scales": "none", "fitness": "fitness.yaml"}
        space |= {"optimizer": {"name": "random", "seed": 3}, "budget": {"trials": 16}}
        fitness["slices"]["a"] |= {"weight": 0}
        fitness["slices"]["b"] = {"task": "tiny_b", "metric": "acc", "weight": 0, "floor": 0.0}
        fitness["slices"]["depth"] = {"measure": "layers", "floor": 3}

    result = evomerge.search(tiny_study(flow))
    searched = [t for t in result.search.trials if t.kind == "search" and t.scores]
    depths = {t.number: -t.scores["depth"] for t in searched}
    assert len(set(depths.values())) > 1
    assert all(result.search.outcome(t).feasible == (depths[t.number] <= 3) for t in searched)
    assert all(t.objective == -depths[t.number] for t in searched)
    assert result.winner is not None
    base = result.search.trials[0].digest
    assert -result.winner.scores["depth"] == 3 == min(depths[t.number] for t in searched if t.digest != base)
