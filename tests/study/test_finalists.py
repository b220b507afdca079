"""Finalists: safe ones and good ones, by the noise of the search items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from evomerge.scoring.gates import Gate
from evomerge.scoring.item_noise import ItemNoise, Scored
from evomerge.study.finalists import TOP, Finalists, choose, gate_confidence, screened
from evomerge.study.run.leaderboard import Floors
from evomerge.study.run.trial import Trial

from ..scoring.test_item_noise import ABSOLUTE, N, draw, info, scored

FLOORS = Floors({"a": Gate("a", 0.5, "0.5")}, {"a": 1.0})


def objective(scores: Mapping[str, float]) -> float:
    return scores["a"]


def falling(scores: Mapping[str, float]) -> float:
    """What is further above the floor is worth less."""
    return 1.0 - scores["a"]


def trials(scores: Sequence[Scored], noise: ItemNoise, worth: object = objective) -> list[Trial]:
    made = []
    for number, one in enumerate(scores):
        values = {name: score.value for name, score in one.scores.items()}
        trial = Trial(number, "search", "", {}, "[]", str(number), 0, "complete", values)
        made.append(replace(trial, objective=worth(values), errors=noise.errors(one)))  # type: ignore[operator]
    return made


def at(means: Sequence[float]) -> list[Scored]:
    """Candidates of these mean scores, each with scatter of its own, but for the means alike."""
    values = draw(1) - draw(1).mean()
    return [scored(values + mean) for mean in means]


def chosen(means: Sequence[float], worth: object = falling, confidence: float | None = None) -> Finalists:
    candidates, base = at(means), scored(draw(0))
    noise = ItemNoise(info(ABSOLUTE), {"base": base})
    made = trials(candidates, noise, worth)
    return choose(made, candidates, base, noise, FLOORS, worth, confidence=confidence)  # type: ignore[arg-type]


def test_a_safe_trial_is_among_them_however_many_stand_better_at_a_floor() -> None:
    means = [0.5 + 0.0005 * number for number in range(30)] + [0.62]
    found = chosen(means)
    assert len(found.chosen) <= TOP
    assert found.chosen[-1].trial.number == 30
    assert found.chosen[-1].chance > 0.98
    assert found.chance > 0.98
    assert found.chosen[0].trial.number < 30
    worths = [finalist.trial.objective or 0.0 for finalist in found.chosen]
    assert worths == sorted(worths, reverse=True)


def test_of_trials_that_all_pass_the_best_is_first() -> None:
    found = chosen([0.8, 0.9, 0.85], objective)
    assert [finalist.trial.number for finalist in found.chosen] == [1]
    assert found.chance == 1.0


def test_more_trials_take_no_chance_away() -> None:
    few, more = chosen([0.51, 0.6]), chosen([0.51, 0.6, *(0.5 + 0.0002 * number for number in range(60))])
    assert more.chance >= few.chance - 0.02


def test_with_confidence_the_error_is_shared_out() -> None:
    found = chosen([0.5, 0.55, 0.6, 0.7], confidence=0.9)
    assert found.confidence == pytest.approx(gate_confidence(0.9, len(found.chosen), 1), abs=0.05)
    assert found.confidence is not None
    assert found.confidence >= 0.9
    # The best of them has to be surely above the floor.
    assert found.chosen[-1].trial.scores["a"] >= 0.6


def test_the_error_of_all_gates_together() -> None:
    assert gate_confidence(0.95, 1, 1) == pytest.approx(0.95)
    assert gate_confidence(0.95, 5, 3) == pytest.approx(1 - 0.05 / 15)


def test_equal_inputs_choose_alike() -> None:
    assert chosen([0.5, 0.52, 0.6]) == chosen([0.5, 0.52, 0.6])


def test_nothing_to_choose_from() -> None:
    base = scored(draw(0))
    noise = ItemNoise(info(ABSOLUTE), {"base": base})
    assert choose([], [], base, noise, FLOORS, objective) == Finalists()
    assert screened([], FLOORS) == []


def test_a_hopeless_search_still_names_the_one_that_comes_closest() -> None:
    found = chosen([0.2, 0.3, 0.25], objective)
    assert [finalist.trial.number for finalist in found.chosen][:1] == [1]
    assert found.chance == 0.0


def test_the_chance_is_how_often_a_finalist_passes_on_other_items() -> None:
    """Candidates of which nothing is known beforehand: their true scores lie anywhere around the floor."""
    generator = np.random.default_rng(3)
    chances, passed = [], []
    for _ in range(600):
        items = generator.normal(generator.uniform(0.3, 0.7), 0.3, N + 60)
        one = scored(items[:N])
        noise = ItemNoise(info(ABSOLUTE), {"base": one})
        found = choose(trials([one], noise), [one], one, noise, FLOORS, objective)
        chances.append(found.chosen[0].chance)
        passed.append(items[N:].mean() >= 0.5)
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.01)):
        within = [low <= chance < high for chance in chances]
        assert np.mean(np.array(chances)[within]) == pytest.approx(np.mean(np.array(passed)[within]), abs=0.1)
