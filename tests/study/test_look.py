"""The look ahead: a search whose finalists all fail goes on inside its budget, higher above its floors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.study import holdout, look, loop
from evomerge.study.look import look_ahead
from evomerge.study.loop import Budget
from evomerge.study.observer import Observer
from evomerge.study.run.leaderboard import Floors
from evomerge.study.run.store import open_storage
from evomerge.study.session import Session

Study = Callable[..., Path]
TRIALS = 20
AHEAD = 18


@pytest.fixture(autouse=True)
def unlikely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short budgets look, and no winner seems likely enough."""
    monkeypatch.setattr(loop, "_WORTH_A_LOOK", 2)
    monkeypatch.setattr(look, "CHANCE", 2.0)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the holdout items no merge passes."""
    settled = holdout._floors

    def out_of_reach(*about: Any) -> Floors:
        floors = settled(*about)
        gates = {name: replace(gate, floor=1.5) for name, gate in floors.gates.items()}
        return replace(floors, gates=gates)

    monkeypatch.setattr(holdout, "_floors", out_of_reach)


class Watcher(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    @property
    def raised(self) -> bool:
        return any("aims higher" in note for note in self.notes)


def of_run(run: str) -> dict[str, Any]:
    store = open_storage(evomerge.study.run.folder.RunFolder.named(run).journal, None, print)
    return dict(evomerge.study.run.store.Store.open(store, run, ()).facts["look"])  # type: ignore[union-attr, arg-type]


def told(run: str) -> list[tuple[Any, ...]]:
    trials = evomerge.status(run).search.trials
    return [(t.number, t.genome, t.digest, dict(t.scores), t.state) for t in trials]


def random(space: dict[str, Any], fitness: dict[str, Any]) -> None:
    space["budget"]["trials"] = TRIALS
    fitness["pruning"] = False


@pytest.mark.usefixtures("failing")
def test_finalists_that_fail_are_not_asked_again(tiny_study: Study) -> None:
    watcher = Watcher()
    result = evomerge.search(tiny_study(random), observer=watcher)
    assert watcher.raised
    assert result.winner is None
    fact = of_run("space")
    assert fact["raised"] == AHEAD
    assert fact["failed"]
    assert len(result.search.trials) == TRIALS
    assert result.release is not None
    assert not set(fact["failed"]) & result.release.chances.keys()
    # They stand in the table, and count for what is said of the search.
    assert set(fact["failed"]) <= {trial.number for trial in result.holdout.trials}


def test_a_finalist_that_passes_changes_nothing(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    space, watcher = tiny_study(random), Watcher()
    evomerge.search(space, run="looked", observer=watcher)
    assert of_run("looked")["raised"] is None
    monkeypatch.setattr(look, "CHANCE", 0.0)
    result = evomerge.search(space, run="not")
    assert told("looked") == told("not")
    winner = evomerge.status("looked").winner
    assert winner is not None
    assert result.winner is not None
    assert winner.number == result.winner.number
    assert not watcher.raised


@pytest.mark.usefixtures("failing")
def test_the_rest_aims_twice_as_high(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float, float]] = []
    outcome = Session.outcome

    def note(self: Session, trial: Any) -> Any:
        known = outcome(self, trial)
        plain = replace(self.trials.leaderboard.floors, aim=0.0).outcome(trial).margins
        seen.append((trial.number, trial.errors.get("b", 0.0), plain[1] - known.margins[1]))
        return known

    monkeypatch.setattr(Session, "outcome", note)
    evomerge.search(tiny_study(random))
    scale = {gap / error for number, error, gap in seen if error > 0 and 4 <= number < AHEAD}
    after = {gap / error for number, error, gap in seen if error > 0 and number >= AHEAD}
    assert max(scale) == pytest.approx(min(scale))
    assert max(after) == pytest.approx(2 * min(scale))
    assert min(after) == pytest.approx(2 * min(scale))


@pytest.mark.usefixtures("failing")
@pytest.mark.parametrize("stop", ["before", "behind"])
def test_killed_at_the_look_it_goes_on_as_if_it_had_not_been(
    tiny_study: Study, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    space = tiny_study(random)
    evomerge.search(space, run="whole")

    def dies(session: Session, budget: Budget) -> None:
        nearly = budget.nearly()
        assert nearly is not None
        due = not nearly.left(session, 1)
        if due and stop == "behind":
            look_ahead(session, budget)
        if due:
            raise KeyboardInterrupt
        look_ahead(session, budget)

    with monkeypatch.context() as patched:
        patched.setattr("evomerge.study.search.look_ahead", dies)
        with pytest.raises(KeyboardInterrupt):
            evomerge.search(space, run="parts")
    evomerge.resume("parts")
    assert told("parts") == told("whole")
    assert of_run("parts") == of_run("whole")


def test_budgets() -> None:
    assert Budget(TRIALS).nearly() == Budget(AHEAD)
    assert Budget(19).nearly() is None
    assert Budget(None, 100.0, 505).nearly() == Budget(None, 90.0, 455)


@pytest.mark.parametrize("about", [{"confidence": 0.9}, {"objective": "pareto"}])
def test_with_confidence_or_a_front_there_is_none(tiny_study: Study, about: dict[str, Any]) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        random(space, fitness)
        fitness.update(about)
        space["optimizer"] = {"name": "nsga-ii" if "objective" in about else "random", "seed": 3}

    evomerge.search(tiny_study(change))
    with pytest.raises(KeyError):
        of_run("space")
