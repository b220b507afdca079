"""A recipe that a genome makes again is not scored again, and its trial says why it has scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
import evomerge.study.holdout as holdout
from evomerge.evaluator.evaluator import Evaluator
from evomerge.study.after.status import status
from evomerge.study.racing import race
from evomerge.study.run.items import read_items
from tests.faults import dying

from ..conftest import write_task

Study = Callable[..., Path]


def generations(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    """Of eight, which race; about half of them are the one recipe that task_arithmetic makes, as it has no density."""
    space["genes"] = {"method": {"choices": ["task_arithmetic", "breadcrumbs"]}, "density": {"low": 0.1, "high": 0.9}}
    space["fixed"] = {"weight": 0.3}
    space["optimizer"] = {"name": "cma-es", "population": 8, "warm_start": False, "seed": 3}
    space["budget"] = {"trials": 28}
    fitness["pruning"] = ["racing", "early_stop"]


def facts(run: str) -> list[tuple[Any, ...]]:
    trials = status(run).search.trials
    return [(t.number, t.label, t.state, t.genome, t.scores, t.objective, t.evaluated, t.digest) for t in trials]


@pytest.mark.slow
def test_a_generation_with_twins_goes_on_wherever_it_is_killed(
    tiny_study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Behind the first generation, all but one fall out on the first rung, and stay so.
    monkeypatch.setattr(race, "NOISE", math.inf)
    monkeypatch.setattr(race.Race, "_first_part", 0.0)
    monkeypatch.setattr(race.Race, "_needed", lambda self, *about: float(self._field[0].trial.number == 4))
    monkeypatch.setattr(holdout, "TOP", 0)
    write_task(tmp_path / "tasks", "tiny_a", 1, count=160)
    write_task(tmp_path / "tasks", "tiny_b", 2, count=160)
    space = tiny_study(generations)
    evomerge.search(space, run="whole")
    whole = facts("whole")
    twins = [number for number, label, *_ in whole if label.startswith("same recipe as")]
    raced = [number for number, _, state, *_ in whole if state == "pruned"]
    assert len(twins) > 4
    together = [(twin, one) for twin in twins for one in raced if (twin - 4) // 8 == (one - 4) // 8]
    assert {twin < one for twin, one in together} == {True, False}  # before and behind what raced
    for after in range(14, 28, 4):
        with dying(after), pytest.raises(KeyboardInterrupt):
            evomerge.search(space, run=f"parts{after}")
        assert [fact[0] for fact in facts(f"parts{after}") if fact[2] != "running"] == list(range(after))  # in order
        evomerge.resume(f"parts{after}")
        assert facts(f"parts{after}") == whole, after


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_recipe_is_scored_twice(tiny_study: Study, monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        # task_arithmetic has no density, so that all of its genomes are one recipe
        space["genes"] = {"method": {"choices": ["task_arithmetic", "ties"]}, "density": {"low": 0.1, "high": 0.9}}
        space["fixed"] = {"weight": 0.4}
        space["optimizer"] = {"name": "random", "asynchronous": asynchronous}
        space["budget"] = {"trials": 20}
        fitness["pruning"] = False

    evaluate, scored = Evaluator.evaluate, Counter[tuple[str, str]]()

    def counted(self: Evaluator, recipe: Any, split: Any, *rest: Any) -> Any:
        scored[recipe.id, split] += 1
        return evaluate(self, recipe, split, *rest)

    monkeypatch.setattr(Evaluator, "evaluate", counted)
    result = evomerge.search(tiny_study(change))
    assert max(scored.values()) == 1
    trials = [t for t in result.search.trials if t.genome]
    assert len(trials) == 16
    first, *again = [t for t in trials if t.genome["method"] == "task_arithmetic"]
    assert len(again) > 2
    for trial in again:
        assert trial.label == f"same recipe as trial {first.number}"
        assert (trial.scores, trial.stderr, trial.digest) == (first.scores, first.stderr, first.digest)
        assert trial.seconds["total"] == 0.0
        items = [read_items(result.folder.items, t.number, "search") for t in (trial, first)]
        assert len(items[0]) == len(items[1]) > 0
