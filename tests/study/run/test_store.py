"""The store keeps what it writes: a process that opens it later reads the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.recipe.mergekit import recipe_from_data
from evomerge.study.run.evaluation import TrialResult
from evomerge.study.run.store import Store, duplicate_label, open_storage
from evomerge.types import Dimension, SliceScore

DIMENSIONS = [Dimension("weight", 0.0, 1.0), Dimension("method", choices=("ties", "linear"), init="ties")]
GENOME: dict[str, Any] = {"weight": 0.25, "method": "ties"}
RECIPE = recipe_from_data([{"merge_method": "linear", "models": [{"model": "m", "parameters": {"weight": 0.25}}]}])
SCORES = {"a": SliceScore(0.5, 0.1), "b": SliceScore(-2.0, None)}


@pytest.fixture(params=["journal", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Opens the same storage again and again."""
    url = None if request.param == "journal" else f"sqlite:///{tmp_path / 'study.db'}"
    return lambda: open_storage(tmp_path / "study.journal", url, warn=pytest.fail)


def test_what_it_writes_is_what_others_read(opened: Any) -> None:
    store = Store.create(opened(), "s", DIMENSIONS)
    reference = store.start("reference", "base", {}, RECIPE, 7)
    store.end(reference, TrialResult({"total": 1.0}, SCORES, "x", 0.1, {"a": 0.4}, 10, 10))
    pruned = store.start("search", "", GENOME, RECIPE, 7, n_told=0, needs_gradient=True)
    store.note(pruned, "y", {"total": 0.5})
    noted = store.note_slopes(pruned, {"a": {"loss": 1.0, "checked": 1.0, "slopes": (1.0, 2.0)}}, {"slopes": 0.25})
    assert noted.slopes == {"a": {"loss": 1.0, "checked": 1.0, "slopes": [1.0, 2.0]}}  # as it is read later
    result = TrialResult(
        {"total": 2.0}, SCORES, "y", -1.0, {}, 3, 10, reason="not among the best 2", pruned_by="racing"
    )
    store.end(pruned, result, constraints=[0.0, 0.2], order=0)
    failed = store.start("search", "", GENOME, RECIPE, 7, n_told=1)
    store.end(failed, TrialResult.failure("out of memory", {"total": 3.0}), order=1)
    store.start("search", "same", GENOME, RECIPE, 7, duplicate_of=1)
    store.promote(store.trial(1), TrialResult({"total": 4.0}, SCORES, "y", 5.0, {}, 10, 10))
    store.record("fact", {"pair": (1, 2)})

    again = Store.open(opened(), "s", DIMENSIONS)
    assert again is not None
    assert again.as_ended() == store.as_ended()
    assert again.trials() == store.trials()
    assert dict(again.facts) == dict(store.facts)
    assert [t.state for t in again.as_ended()] == ["complete", "pruned", "failed", "running"]
    assert [t.state for t in again.trials()] == ["complete", "complete", "failed", "running"]
    assert again.trials()[1].objective == 5.0
    assert again.trial(1).objective == -1.0
    assert again.trial(3).duplicate_of == 1
    assert again.trial(1).recipe == RECIPE


def test_a_recipe_is_parsed_once_while_its_trial_runs(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from evomerge.study.run import trial as module

    parsed = []
    monkeypatch.setattr(module, "recipe_from_data", lambda data: parsed.append(1) or RECIPE)
    store = Store.create(opened(), "s", DIMENSIONS)
    trial = store.start("search", "", GENOME, RECIPE, 0)
    assert trial.recipe == RECIPE
    store.note(trial, "x", {})
    trial = store.note_slopes(trial, {}, {})
    assert trial.recipe == RECIPE
    assert len(parsed) == 1
    assert "recipe" not in store.end(trial, TrialResult({"total": 0.0}, SCORES, "x", 0.0)).__dict__


def test_a_duplicate_of_an_older_run_is_known_by_its_label(opened: Any) -> None:
    store = Store.create(opened(), "s", DIMENSIONS)
    base = store.start("reference", "base", {}, RECIPE, 0)
    first = store.start("search", "", GENOME, RECIPE, 0)
    failed = store.start("search", "", GENOME, RECIPE, 0)
    for original in (base, first):
        store.end(original, TrialResult({"total": 1.0}, SCORES, "x", 0.1))
    store.end(failed, TrialResult.failure("out of memory", {}))
    for original in (base, first, failed):
        store.start("search", duplicate_label("greedy soup", original), GENOME, RECIPE, 0)
    again = Store.open(opened(), "s", DIMENSIONS)
    assert again is not None
    assert [t.duplicate_of for t in again.as_ended()] == [None, None, None, 0, 1, None]
    assert again.note_slopes(again.trial(4), {}, {}).duplicate_of == 1
    assert again.end(again.trial(4), TrialResult({"total": 1.0}, SCORES, "x", 0.1)).duplicate_of == 1
