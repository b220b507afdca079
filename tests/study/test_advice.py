"""What would help a search without a winner, as numbers that come true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from evomerge.report.verdicts import advice_words
from evomerge.scoring.gates import Gate
from evomerge.study.advice import CHANCE, advise
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.release import Advice
from evomerge.study.run.trial import Trial

FLOORS = Floors({"a": Gate("a", 0.8, "0.8"), "b": Gate("b", None)}, {"a": 1.0, "b": 1.0})


def trial(number: int, a: float, error: float = 0.02) -> Trial:
    made = Trial(number, "search", "", {}, "[]", str(number), 0, "complete", {"a": a, "b": 0.1})
    return replace(made, objective=a, errors={"a": error}, digest=str(number))


def advised(search: float, holdout: float, chances: tuple[float, float] = (0.2, 0.2)) -> Advice:
    board = Leaderboard(FLOORS, [trial(7, holdout), trial(8, holdout - 0.1)])
    found = advise(
        {7: trial(7, search), 8: trial(8, search)},
        board,
        FLOORS,
        None,
        100,
        lambda after: chances[0] if after < 100 else chances[1],
    )
    assert found is not None
    return found


def test_the_floor_that_the_closest_finalist_passes() -> None:
    found = advised(0.83, 0.7912345)
    assert found.trial == 7
    lower = replace(FLOORS, gates={**FLOORS.gates, "a": Gate("a", found.floors["a"])})
    assert lower.outcome(trial(7, 0.7912345)).feasible
    shown = "\n".join(advice_words(found, Leaderboard(FLOORS, [trial(7, 0.7912345)]), "space"))
    assert "a 0.7912 (0.0088 lower) " in f"{shown} "


def test_so_many_items_give_the_chance() -> None:
    """0.01 above the floor in truth, with errors of 0.02: drawn again with more items, it passes as often as said."""
    found = advised(0.83, 0.79)
    assert found.items is not None
    spread = 0.02 / np.sqrt(2) / np.sqrt(found.items)
    passes = np.random.default_rng(0).normal(0.81, spread, 20_000) >= 0.8
    assert passes.mean() == pytest.approx(CHANCE, abs=0.02)


def test_no_number_of_items_helps_what_lies_below_the_floor() -> None:
    assert advised(0.80, 0.78).items is None


def test_a_trial_far_above_the_floor_was_only_unlucky() -> None:
    found = advised(0.90, 0.79)
    assert found.items == 1.0
    shown = "\n".join(advice_words(found, Leaderboard(FLOORS, [trial(7, 0.79)]), "space"))
    assert "with as many others in each split, trial 7 passes with 80 % probability" in shown


def test_a_trial_just_above_the_floor_needs_very_many() -> None:
    found = advised(0.8101, 0.79)
    assert found.items is not None
    assert found.items > 64
    shown = "\n".join(advice_words(found, Leaderboard(FLOORS, [trial(7, 0.79)]), "space"))
    assert "trial 7 needs more than 64 times as many" in shown


def test_the_average_may_be_the_closest() -> None:
    """As the end of a search names it."""
    average = replace(trial(3, 0.799), kind="reference", label="uniform")
    board = Leaderboard(FLOORS, [average, trial(7, 0.79)])
    found = advise({3: trial(3, 0.83), 7: trial(7, 0.83)}, board, FLOORS, None, 100, lambda after: 0.2)
    assert found is not None
    assert (found.trial, found.floors) == (3, {"a": 0.799})


def test_trials_go_by_how_the_chance_rose() -> None:
    assert advised(0.83, 0.79, (0.4, 0.6)).trials == 200
    assert advised(0.83, 0.79, (0.6, 0.6)).trials is None
    assert advised(0.83, 0.79, (0.9, 0.95)).trials is None


def test_it_is_kept_as_it_is() -> None:
    found = advised(0.83, 0.79, (0.4, 0.6))
    assert Advice.from_data(found.to_data()) == found


def test_nothing_was_tested() -> None:
    assert advise({}, Leaderboard(FLOORS, []), FLOORS, None, 10, lambda after: 0.0) is None
