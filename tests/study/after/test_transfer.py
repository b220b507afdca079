"""A search that begins with another run's winner, in a finer space; and what is frozen stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import evomerge
from evomerge.errors import InputError
from evomerge.study.run.trial import Trial
from evomerge.study.session import Session
from evomerge.types import Outcome
from tests.conftest import save_tiny

Study = Callable[..., Path]


def finer(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["modules"] = {"mlp": "mlp"}
    space["layers"] = "each"
    space["genes"]["weight"] |= {"per": ["sources", "layers", "modules"]}
    space["genes"]["lambda"] = {"low": 0.5, "high": 1.5}
    space["optimizer"] = {"name": "surrogate"}
    space["budget"] = {"trials": 7}


def test_the_winner_is_carried_over_bit_for_bit(tiny_study: Study) -> None:
    coarse = evomerge.search(tiny_study(lambda space, _: space.update(layers=1)), run="coarse")
    assert coarse.winner is not None
    space = tiny_study(finer)
    result = evomerge.search(space, run="fine", from_run="coarse")
    first = next(t for t in result.search.trials if t.kind == "search")
    assert len(first.genome) > len(coarse.winner.genome)
    assert first.digest == coarse.winner.digest
    assert first.label == f"trial {coarse.winner.number} of coarse"
    # resumed, it still knows where it came from
    assert evomerge.resume("fine", trials=9).search.trials[4].genome == first.genome
    other = next(t.number for t in coarse.search.trials if t.genome and t.number != coarse.winner.number)
    again = evomerge.search(space, run="other", from_run=f"coarse:{other}", trials=5)
    assert again.search.trials[4].digest == coarse.search.trials[other].digest


def test_another_method_may_be_searched_as_well(tiny_study: Study) -> None:
    """Its density is nothing that the run had, nor needs: task_arithmetic, which it had, takes none."""
    coarse = evomerge.search(tiny_study(), run="coarse", trials=7)
    assert coarse.winner is not None

    def wider(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["genes"]["method"] = {"choices": ["ties", "task_arithmetic"], "per": ["layers"]}
        space["genes"]["density"] = {"low": 0.1, "high": 0.9, "init": 0.7}

    first = evomerge.search(tiny_study(wider), run="wide", from_run="coarse", trials=5).search.trials[4]
    assert first.digest == coarse.winner.digest
    assert (first.genome["method[0]"], first.genome["density"]) == ("task_arithmetic", 0.7)


def test_a_source_may_come_before_the_others(tiny_study: Study, tiny_models: Path) -> None:
    def coarse(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        del space["sources"]["one"]
        space["genes"]["lambda"] = {"low": 0.5, "high": 1.5}

    def more(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["genes"]["lambda"] = {"low": 0.5, "high": 1.5}

    before = evomerge.search(tiny_study(coarse), run="few", trials=6).search.trials[4]
    first = evomerge.search(tiny_study(more), run="more", from_run="few:4", trials=5).search.trials[4]
    assert first.genome["lambda"] == before.genome["lambda"]
    assert first.digest == before.digest


def test_knots_are_carried_over_to_knots(tiny_study: Study, tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", 1, num_hidden_layers=5)
    for name, seed in (("one", 2), ("two", 3)):
        save_tiny(tmp_path / name, seed, near=tmp_path / "base", scale=0.2)

    def lines(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space |= {"base": str(tmp_path / "base"), "sources": {n: str(tmp_path / n) for n in ("one", "two")}}
        space |= {"layers": 2, "interpolate": True, "optimizer": {"name": "random"}}

    def apart(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        lines(space, fitness)
        space["modules"] = {"mlp": "mlp"}
        space["genes"]["weight"]["per"] = ["sources", "layers", "modules"]

    before = evomerge.search(tiny_study(lines), run="lines", trials=6).search.trials[5]
    first = evomerge.search(tiny_study(apart), run="apart", from_run="lines:5", trials=5).search.trials[4]
    assert len(first.genome) == 2 * len(before.genome)
    assert first.digest == before.digest


def test_what_was_frozen_may_be_searched(tiny_study: Study) -> None:
    def still(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space |= {"layers": 1, "freeze": {"layers": [1]}, "optimizer": {"name": "random"}}

    before = evomerge.search(tiny_study(still), run="still", trials=6).search.trials[5]
    first = evomerge.search(tiny_study(), run="free", from_run="still:5", trials=5).search.trials[4]
    assert first.genome["weight[one,0]"] != 0.0
    assert first.genome["weight[one,1]"] == 0.0
    assert first.digest == before.digest


def coarser(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["layers"] = 1


def narrower(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["genes"]["weight"] |= {"low": 0.99, "init": 1.0}


def fewer(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    del space["sources"]["two"]


def knots(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["interpolate"] = True


def fixed(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["genes"] = {"method": "task_arithmetic", "lambda": {"low": 0.5, "high": 1.5}}
    space["fixed"] = {"weight": 0.5}


def other_method(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["genes"] = {**space["genes"], "method": "ties"}


def normalized(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["fixed"] = {"normalize": True}


def still_layer(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["freeze"] = {"layers": [[1, 2]]}


def still_source(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["freeze"] = {"sources": {"one": 0.123}}


@pytest.mark.parametrize(
    ("change", "begin", "message"),
    [
        (coarser, "old", r"would need \d values"),
        (narrower, "old", r"outside of its range; widen its range"),
        (fewer, "old", "old merges two, which this space does not have"),
        (knots, "old", "knots"),
        (fixed, "old", "weight was .* for one in layer 0, and is 0.5 here; search weight there, or fix it at"),
        (other_method, "old", "method was task_arithmetic .* is ties here"),
        (normalized, "old", "normalize was .* is .* here"),
        (still_layer, "old", "layer 1 is frozen here, and was merged"),
        (still_source, "old", "weight was .* for one in layer 0, and is 0.123 here"),
        (None, "old:999", "old has no searched trial 999"),
        (None, "none", "no run"),
    ],
)
def test_what_cannot_be_carried_over(tiny_study: Study, change: Any, begin: str, message: str) -> None:
    evomerge.search(tiny_study(), run="old", trials=6)
    with pytest.raises(InputError, match=message):
        evomerge.search(tiny_study(change), run="new", from_run=begin)
    assert not Path("runs/new").exists()


@pytest.mark.parametrize("optimizer", ["path", "uniform-soup", "greedy-soup"])
def test_who_goes_by_known_models_does_not_begin_elsewhere(tiny_study: Study, optimizer: str) -> None:
    evomerge.search(tiny_study(), run="old", trials=6)
    with pytest.raises(InputError, match=f"{optimizer} goes by known models only; use another optimizer"):
        evomerge.search(tiny_study(), run="new", optimizer=optimizer, from_run="old")


def test_where_it_begins_is_scored_once(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """CMA-ES proposes its mean, which is what the warm start began with, if that was the best."""
    evomerge.search(tiny_study(), run="old", trials=6)
    outcome = Session.outcome

    def first_is_best(session: Session, trial: Trial) -> Outcome:
        return replace(outcome(session, trial), feasible=True, shortfall=0.0, objective=-float(trial.number != 4))

    monkeypatch.setattr(Session, "outcome", first_is_best)

    def warm(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["optimizer"] = {"name": "cma-es"}

    trials = evomerge.search(tiny_study(warm), run="new", from_run="old", trials=8).search.trials
    first, again = (t for t in trials if t.genome == trials[4].genome)
    assert again.label == f"{first.label}, same recipe as trial 4"
    assert again.seconds["total"] == 0.0
    assert again.scores == first.scores


def test_frozen_layers_are_the_bases(tiny_study: Study) -> None:
    def frozen(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["layers"] = "each"
        space["freeze"] = {"layers": [1]}

    result = evomerge.search(tiny_study(frozen), trials=7)
    assert result.winner is not None
    evomerge.export("space", "best.yaml")
    evomerge.merge(Path("best.yaml"), Path("merged"))
    base, merged = (load_file(f"{folder}/model.safetensors") for folder in ("models/base", "merged"))
    still = {name for name in base if base[name].equal(merged[name])}
    assert {name for name in base if ".layers.1." in name} <= still
    assert not {name for name in base if ".layers.0." in name} & still
