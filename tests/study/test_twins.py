"""A recipe that a genome makes again is not scored again, and its trial says why it has scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.study.bench import Workbench
from evomerge.study.items import read_items

Study = Callable[..., Path]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_recipe_is_scored_twice(tiny_study: Study, monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        # task_arithmetic has no density, so that all of its genomes are one recipe
        space["genes"] = {"method": {"choices": ["task_arithmetic", "ties"]}, "density": {"low": 0.1, "high": 0.9}}
        space["fixed"] = {"weight": 0.4}
        space["optimizer"] = {"name": "random", "asynchronous": asynchronous}
        space["budget"] = {"trials": 20}
        fitness["economy"] = False

    evaluate, scored = Workbench.evaluate, Counter[tuple[str, str]]()

    def counted(self: Workbench, recipe: Any, split: Any, *rest: Any) -> Any:
        scored[recipe.id, split] += 1
        return evaluate(self, recipe, split, *rest)

    monkeypatch.setattr(Workbench, "evaluate", counted)
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
