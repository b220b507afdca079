"""`objective: pareto` on tiny checkpoints: a front that is resumed, shown, re-scored and exported; what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.cli import main
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.optimize import declarations
from evomerge.study import holdout
from evomerge.study.observer import Observer
from evomerge.study.run.folder import RunFolder

from .test_search import StopAfter, facts

Study = Callable[..., Path]


SIZES = """
def size(model, layer):
    return float(model.model.layers[layer].mlp.up_proj.weight.detach().abs().mean())

def grown(model, tokenizer, items):
    return [size(model, 0)] * len(items)

def kept(model, tokenizer, items):
    return [1 - size(model, 0) - size(model, 1)] * len(items)
"""
"""The first layer cannot both grow and be kept; the second one is best left alone."""


def front_of(name: str, **keys: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["optimizer"] = {"name": name, "seed": 3}
        space["budget"]["trials"] = 24
        Path("sizes.py").write_text(SIZES)
        Path("items.jsonl").write_text("".join(json.dumps({"id": i}) + "\n" for i in range(20)))
        grown = {"python": "sizes:grown", "data": "items.jsonl"}
        kept = {"python": "sizes:kept", "data": "items.jsonl", "floor": {"of": "base", "margin": 0.1}}
        fitness.update({"objective": "pareto", "slices": {"grown": grown, "kept": kept}, **keys})

    return change


def dominates(better: dict[str, float], other: dict[str, float]) -> bool:
    return better != other and all(better[name] >= other[name] for name in other)


@pytest.mark.parametrize("name", ["nsga-ii", "tpe"])
def test_a_front_of_feasible_trade_offs(tiny_study: Study, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    space = tiny_study(front_of(name))
    assert main(["search", str(space), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    state = evomerge.status("space")
    front = state.search.front()
    able = [t for t in state.search.merges() if state.search.outcome(t).feasible]
    assert len(front) > 1
    for trial in able:
        assert any(t.scores == trial.scores or dominates(t.scores, trial.scores) for t in front)
    assert not any(dominates(a.scores, b.scores) for a in able for b in front)
    assert state.search.best() == front[0]
    assert all(t.pruned_by != "racing" for t in state.search.trials)
    assert [point["trial"] for point in told["front"]] == [t.number for t in front]
    assert all(point["search"]["scores"] == dict(t.scores) for point, t in zip(told["front"], front, strict=True))
    assert sum(point["holdout"] is not None for point in told["front"]) == min(holdout.POINTS, len(front))

    with pytest.raises(KeyboardInterrupt):
        evomerge.search(space, run="cut", observer=StopAfter(17))
    evomerge.resume("cut")
    assert facts("cut") == facts("space")


def test_a_point_of_the_front_is_shown_and_exported(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    space = tiny_study(front_of("nsga-ii"))
    assert main(["search", str(space)]) == 0
    printed = capsys.readouterr().out
    state = evomerge.status("space")
    front, best = state.search.front(), RunFolder.named("space").best.read_text()
    point = front[-1]
    assert f"front: {len(front)} trade-offs" in printed
    for trial in front:
        assert state.search.floors.describe(trial) in printed
    assert state.release is not None
    assert all(state.search.floors.describe(t) in best for t in front)
    evomerge.export("space", "point.yaml", trial=point.number)
    assert checkpoint_digest(evomerge.merge(Path("point.yaml"), Path("out"))) == point.digest
    assert [t.number for t in evomerge.rank("space", "fitness.yaml").search.front()] == [t.number for t in front]
    assert main(["status", "space"]) == 0
    assert f"the front has {len(front)} of them" in " ".join(capsys.readouterr().out.split())


def test_what_has_no_room_on_the_holdout_split_is_named(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    class Noting(Observer):
        def note(self, message: str) -> None:
            notes.append(message)

    monkeypatch.setattr(holdout, "POINTS", 1)
    result = evomerge.search(tiny_study(front_of("nsga-ii")), observer=Noting())
    first, *others = front = result.search.front()
    assert [t.number for t in result.holdout.trials if t.kind == "search"] == [first.number]
    assert others
    told = f"{len(others)} of the {len(front)} points of the front are not scored on the holdout items"
    assert f"{told}: {', '.join(t.name for t in others)}" in notes


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The complaint, which is the same before a search and in a dry run."""
    said = []
    for more in ([], ["--dry-run"]):
        assert main(["search", "space.yaml", *arguments, *more]) == 2
        said.append(capsys.readouterr().err.splitlines()[-1].replace(f"{Path.cwd()}/", ""))
    assert said[0] == said[1]
    assert not Path("runs").exists()
    return said[0]


@pytest.mark.parametrize("name", ["cma-es", "qmc", "random"])
def test_pareto_with_an_optimizer_that_follows_one_number(
    tiny_study: Study, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    tiny_study(front_of(name))
    said = refused(capsys)
    assert f"fitness.yaml:{line_of('objective')}: objective: pareto keeps a front of trade-offs" in said
    assert f"the optimizer {name} follows one number" in said
    assert "use the optimizer tpe or nsga-ii, or weighted_mean" in said


def line_of(key: str) -> int:
    return next(i for i, line in enumerate(Path("fitness.yaml").read_text().splitlines(), 1) if key in line)


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [
        ("nsga-ii", 4, "4 slices are more than the 3 that nsga-ii can trade off; use the optimizer tpe, or give"),
        ("tpe", 7, "7 slices are more than the 6 that tpe can trade off; leave slices out, or give slices weight 0"),
        ("tpe", 1, "pareto trades slices off against each other, and 1 has a weight above 0; use weighted_mean"),
    ],
)
def test_more_slices_than_objectives_are_allowed(
    tiny_study: Study, capsys: pytest.CaptureFixture[str], name: str, count: int, said: str
) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        front_of(name)(space, fitness)
        piece = {"task": "tiny_a", "metric": "acc"}
        fitness["slices"] = {f"s{i}": dict(piece) for i in range(count)} | {"free": {**piece, "weight": 0}}

    tiny_study(change)
    assert f"fitness.yaml:{line_of('objective')}: objective: {said}" in refused(capsys)


def test_racing_for_a_front(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study(front_of("tpe", pruning=["early_stop", "racing"]))
    said = refused(capsys)
    assert f"fitness.yaml:{line_of('- racing')}: pruning" in said
    assert "racing needs one order of all candidates, and pareto keeps a front; remove it" in said


def test_choices_for_an_optimizer_of_numbers(
    tiny_study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["genes"]["method"] = {"choices": ["task_arithmetic", "ties"]}
        space["genes"]["density"] = {"low": 0.2, "high": 0.9}
        space["optimizer"] = {"name": "qmc"}

    # in truth all optimizers but `gradient` take choices
    changed = {**declarations.DECLARATIONS, "qmc": declarations.Declaration(choices=False)}
    monkeypatch.setattr(declarations, "DECLARATIONS", changed)
    tiny_study(change)
    said = refused(capsys)
    assert "space.yaml:" in said
    assert "genes.method: method is a choice, and qmc takes numbers only; use the optimizer surrogate or cma-es" in said


def test_with_confidence_all_merges_that_are_scored_share_the_error(tiny_study: Study) -> None:
    """The points and the uniform average; `rank` holds them to the same bounds."""
    space = tiny_study(front_of("nsga-ii", confidence=0.9))
    result = evomerge.search(space)
    assert result.release is not None
    merges = [t for t in result.holdout.trials if not t.is_parent]
    assert result.release.confidence == pytest.approx(1 - 0.1 / len(merges))
    ranked = evomerge.rank("space", "fitness.yaml")
    assert ranked.holdout is not None
    bounds = {t.number: t.bounds for t in ranked.holdout.trials}
    assert all(bounds[t.number] == t.bounds for t in merges if t.number in bounds)
