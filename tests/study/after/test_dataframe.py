"""The table of a run's trials: one row each, in the metrics' own directions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import evomerge

Study = Callable[..., Path]


def test_one_row_a_trial(tiny_study: Study) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["confidence"] = 0.9
        fitness["slices"]["b"].pop("floor")
        fitness["pruning"] = False

    result = evomerge.search(tiny_study(change), trials=8)
    table = evomerge.status("space").trials_dataframe()
    pd.testing.assert_frame_equal(table, result.trials_dataframe())
    assert table.number.tolist() == list(range(8))
    assert table.state.tolist() == ["complete"] * 8
    assert table.label[:4].tolist() == ["base", "one", "two", "uniform"]
    last = result.search.trials[-1]
    row = table.iloc[-1]
    assert {key: row[f"genes_{key}"] for key in last.genome} == last.genome
    assert (row.scores_a, row.bounds_a) == (last.scores["a"], last.bounds["a"])
    assert row.floors_a == result.search.verdicts(last)[0].passed
    assert "floors_b" not in table
    assert row.seconds_total == last.seconds["total"] > 0
    assert table["genes_weight[one,0]"].isna().tolist() == [True] * 4 + [False] * 4


def test_a_metric_that_is_better_lower_keeps_its_sign(tiny_study: Study) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["a"] = {"task": "tiny_a", "metric": "brier_score", "floor": 2.0}
        fitness["objective"] = "min"

    text = tiny_study(change)
    task = text.parent / "tasks" / "tiny_a.yaml"
    task.write_text(task.read_text().replace("metric: acc", "metric: brier_score"))
    result = evomerge.search(text, trials=5)
    table = result.trials_dataframe()
    assert table.scores_a.tolist() == pytest.approx([-t.scores["a"] for t in result.search.trials])
    assert (table.scores_a > 0).all()
    assert table.floors_a.all()


def test_scores_have_the_metric_s_direction_on_every_way_to_them(tiny_study: Callable[..., Path]) -> None:
    """Perplexity, of which less is better, is positive for people, and negative inside."""

    def lower(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        fitness["slices"]["b"] |= {"direction": "lower", "floor": 1.0}

    result = evomerge.search(tiny_study(lower), trials=6)
    trial = result.search.trials[0]
    table = result.trials_dataframe()
    assert trial.scores["b"] <= 0 <= result.metrics(trial)["b"] == -trial.scores["b"]
    assert evomerge.status("space").metrics(trial) == result.metrics(trial)
    assert table.scores_b[0] == result.metrics(trial)["b"]
    scored = evomerge.evaluate("models/base", "fitness.yaml", split="search")
    assert scored.metrics == result.metrics(trial)
    assert scored.scores["b"].value == trial.scores["b"]
