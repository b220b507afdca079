"""The default: what its model predicts, what it makes of floors, and that it finds more than it is shown."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from evomerge.optimize.base import Start
from evomerge.optimize.bayesian import Surrogate, targets
from evomerge.optimize.build import build
from evomerge.optimize.gaussian_process import (
    Believer,
    GaussianProcess,
    acquisition,
    log_expected_improvement,
)
from evomerge.optimize.mutation import Mutation
from evomerge.optimize.replay import Asked, replay_interleaved
from evomerge.space.vector import Encoding
from evomerge.types import Dimension, Genome, Outcome

WEIGHTS = [
    Dimension(f"weight[{s},{n}]", 0.0, 1.0, 0.5, gene="weight", place={"sources": s, "layers": str(n)})
    for s in "ab"
    for n in range(4)
]
GOAL = np.array([0.7, 0.6, 0.5, 0.4, 0.1, 0.2, 0.1, 0.3])


def vector(genome: Genome) -> np.ndarray:
    return np.array([float(genome[d.key]) for d in WEIGHTS])


def merge(genome: Genome) -> Outcome:
    """Best at GOAL, but for a floor that the sum of all weights must not pass."""
    weights = vector(genome)
    margin = 2.4 - float(weights.sum())
    objective = -float(((weights - GOAL) ** 2).sum())
    return Outcome(False, margin >= 0, objective, max(0.0, -margin), (margin,), (objective,))


def best_of(optimizer: Surrogate, trials: int) -> float:
    found = -math.inf
    for _ in range(trials):
        genome = optimizer.ask().genome
        outcome = merge(genome)
        optimizer.tell(genome, outcome)
        found = max(found, outcome.objective) if outcome.feasible else found
    return found


def test_a_smooth_problem_with_an_active_floor_is_solved_in_few_trials() -> None:
    # GOAL adds up to 2.9: the best that the floor allows is 0.5 less, spread over the eight weights
    assert best_of(build("surrogate", WEIGHTS, 0, {}), 60) > -(0.5**2) / 8 - 0.005


def test_a_population_finds_nearly_as_much() -> None:
    assert best_of(build("surrogate", WEIGHTS, 0, {"population": 6}), 60) > -(0.5**2) / 8 - 0.02
    assert build("surrogate", WEIGHTS, 0, {}, num_workers=5).generation.askable == 5


def raced(asynchronous: bool, workers: int, trials: int) -> list[Asked]:
    """The record of a search by so many workers, whose evaluations end in an order of their own."""
    optimizer = build("surrogate", WEIGHTS, 0, {}, asynchronous=asynchronous, num_workers=workers)
    record: list[Asked] = []
    flying: list[int] = []
    n_told = 0
    while n_told < trials:
        while len(flying) < workers and optimizer.generation.askable and len(record) < trials:
            flying.append(len(record))
            record.append(Asked(optimizer.ask().genome, n_told))
        number = flying.pop(7 * n_told % len(flying) if asynchronous else 0)
        outcome = merge(record[number].genome)
        optimizer.tell(record[number].genome, outcome)
        record[number] = replace(record[number], outcome=outcome, place=n_told)
        n_told += 1
    return record


@pytest.mark.parametrize("asynchronous", [True, False])
def test_many_workers_are_given_batches_and_a_later_process_goes_on_inside_of_one(asynchronous: bool) -> None:
    record = raced(asynchronous, 16, 96)
    assert len({tuple(asked.genome.values()) for asked in record}) == 96
    feasible = [asked.outcome.objective for asked in record if asked.outcome and asked.outcome.feasible]
    assert max(feasible) > -(0.5**2) / 8 - 0.02
    for cut in (0, 5, 33, 50, 79):
        # What a killed process leaves: what had been asked, and which of it was told by then.
        left = [
            asked if asked.place is not None and asked.place < record[cut].n_told else Asked(asked.genome, asked.n_told)
            for asked in record[:cut]
        ]
        optimizer = build("surrogate", WEIGHTS, 0, {}, asynchronous=asynchronous, num_workers=16)
        replay_interleaved(optimizer, left)
        until = next((at for at in range(cut, 96) if record[at].n_told > record[cut].n_told), 96)
        assert [optimizer.ask().genome for _ in range(cut, until)] == [asked.genome for asked in record[cut:until]]


def test_more_workers_than_usual_all_have_work() -> None:
    optimizer = build("surrogate", WEIGHTS, 0, {}, asynchronous=True, num_workers=1000)
    assert optimizer.generation.askable == 1000


def test_believed_predictions_leave_the_means_and_what_a_new_process_says() -> None:
    generator = np.random.default_rng(0)
    inputs, new = generator.random((30, 3)), generator.random((20, 3))
    outputs = np.sin(3 * inputs[:, :1]) + inputs[:, 1:2]
    groups = [np.array([0, 1]), np.array([2])]
    model = GaussianProcess(inputs, outputs, groups)
    believer = Believer(model, new, *model.explained(new))
    for place in (3, 11, 3):
        believer.believe(place)
    mean, std = model.predict(new)
    assert np.allclose(believer.mean, mean)
    known = GaussianProcess(
        np.concatenate([inputs, new[[3, 11, 3]]]),
        np.concatenate([outputs, mean[[3, 11, 3]]]),
        groups,
        model.hyperparameters,
    )
    ratio = believer.std / known.predict(new)[1]  # but for the amplitude, which the data set
    assert np.allclose(ratio, ratio[0], rtol=1e-4)
    assert (believer.std < std).all()


def test_what_is_recorded_is_taken_as_it_is() -> None:
    optimizer = build("surrogate", WEIGHTS, 0, {})
    optimizer.recall({d.key: 0.123 for d in WEIGHTS})
    optimizer.tell({d.key: 0.123 for d in WEIGHTS}, merge({d.key: 0.123 for d in WEIGHTS}))
    with pytest.raises(ValueError, match=r"1\.5 is recorded, which the space does not have"):
        optimizer.recall({d.key: 1.5 for d in WEIGHTS})


def test_what_is_known_counts_for_the_start() -> None:
    known = [({d.key: w for d in WEIGHTS}, merge({d.key: w for d in WEIGHTS})) for w in np.linspace(0.05, 0.95, 10)]
    taught = build("surrogate", WEIGHTS, 0, {}, Start(genome=known[2][0], known=known))
    assert len(taught.history) == 0
    assert best_of(taught, 15) > max(outcome.objective for _, outcome in known if outcome.feasible) + 0.1


def test_targets_of_failures_and_of_outcomes_without_margins() -> None:
    outcomes = [
        Outcome(False, True, 1.0, 0.0, (0.2,), (1.0,)),
        Outcome(failed=True),
        Outcome(False, False, 0.5, 0.3, (-0.3,), (0.5,)),
        Outcome(False, True, math.nan, 0.0, (0.1,), ()),
    ]
    found = targets(outcomes)
    assert found.shape == (4, 2)
    assert np.isfinite(found).all()
    assert (found[1] == found.min(axis=0)).all()
    assert (found[3] == found.min(axis=0)).all()
    assert targets([Outcome(feasible=True, objective=1.0, shortfall=0.0)] * 3).shape == (3, 1)
    bare = [Outcome(feasible=True, objective=1.0, shortfall=0.0), Outcome(objective=0.5, shortfall=0.3)]
    assert targets(bare)[:, 1].tolist() == [0.0, -0.3]


def test_the_hopeless_do_not_hide_differences() -> None:
    values = [0.0, -0.1, -0.2, -0.3, -1e6]
    found = targets([Outcome(feasible=True, objective=v, shortfall=0.0) for v in values])[:, 0]
    assert found[:4].tolist() == values[:4]
    assert -10 < found[4] < -0.3


def test_a_process_goes_through_its_data_and_doubts_elsewhere() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.random((30, 3))
    outputs = np.stack([np.sin(3 * inputs[:, 0]) + inputs[:, 1], inputs.sum(axis=1) ** 2], axis=1)
    process = GaussianProcess(inputs, outputs, [np.arange(3)])
    mean, doubt = process.predict(inputs)
    assert np.allclose(mean, outputs, atol=0.02)
    near, far = process.predict(inputs[:1] + 0.01)[1], process.predict(np.full((1, 3), 3.0))[1]
    assert (far > 5 * near).all()
    new = generator.random((40, 3))
    exact = np.stack([np.sin(3 * new[:, 0]) + new[:, 1], new.sum(axis=1) ** 2], axis=1)
    assert np.abs(process.predict(new)[0] - exact).max() < 0.3
    before = process.predict(new[:1])[0]
    process.add_fantasies(new[:1])
    assert np.allclose(process.predict(new[:1])[0], before, atol=0.02)
    assert (process.predict(new[:1])[1] < 0.2 * far).all()
    assert np.isfinite(doubt).all()


def test_noise_is_not_fitted() -> None:
    generator = np.random.default_rng(1)
    inputs = generator.random((60, 2))
    truth = inputs.sum(axis=1)
    process = GaussianProcess(inputs, (truth + 0.1 * generator.standard_normal(60))[:, None], [np.arange(2)])
    assert 0.05 < process.noise[0] < 0.2
    assert np.abs(process.predict(inputs)[0][:, 0] - truth).mean() < 0.06


@settings(max_examples=40, deadline=None)
@given(st.floats(-3.0, 3.0), st.floats(0.05, 2.0), st.floats(-3.0, 3.0))
def test_expectations_are_integrals(mean: float, spread: float, best: float) -> None:
    predicted = norm(mean, spread)
    span = (mean - 12 * spread, mean + 12 * spread)
    gain, _ = quad(lambda f: max(0.0, f - best) * predicted.pdf(f), *span, points=[min(max(best, span[0]), span[1])])
    found = log_expected_improvement(np.array([mean]), np.array([spread]), best)[0]
    if gain > 1e-8:
        assert found == pytest.approx(math.log(gain), abs=1e-3)


def test_improvement_is_ordered_however_small() -> None:
    means = np.linspace(-60.0, 0.0, 200)
    found = log_expected_improvement(means, np.ones(200), 1.0)
    assert np.isfinite(found).all()
    assert (np.diff(found) > 0).all()


def test_the_unknown_is_worth_a_look_where_nothing_is_feasible() -> None:
    """Beside what was seen, and surely misses the floor by little, no evaluation can find anything."""
    mean = np.array([[0.0, -0.2], [0.0, -0.5]])
    spread = np.array([[0.1, 0.001], [0.1, 0.5]])
    assert acquisition(mean, spread, None).argmax() == 1


def test_floors_come_before_improvement() -> None:
    mean = np.array([[5.0, -3.0], [1.0, 3.0]])
    spread = np.full((2, 2), 0.5)
    assert acquisition(mean, spread, 0.5).argmax() == 1
    assert acquisition(mean, spread, None).argmax() == 1


def test_mutants_are_legal_and_move_genes_together() -> None:
    method = Dimension("method", choices=("ties", "dare", "linear"), init="dare", gene="method")
    encoding = Encoding([*WEIGHTS, method])
    parents = encoding.encode({**{d.key: 0.5 for d in WEIGHTS}, "method": "dare"})[None]
    found = Mutation(encoding).around(parents, 2000, 1.0, np.random.default_rng(0))
    assert ((found >= 0) & (found <= 1)).all()
    choices = found[:, 8:]
    assert (np.sort(choices, axis=1) == [0, 0, 1]).all()
    assert set(choices.argmax(axis=1)) == {0, 1, 2}
    moved = found[:, :4] - 0.5
    together = (np.abs(moved - moved[:, :1]) < 1e-12).all(axis=1) & (np.abs(moved[:, 0]) > 0)
    assert together.mean() > 0.02
    assert (np.abs(moved) > 0.3).any()
    assert ((np.abs(moved) < 0.02) & (moved != 0)).any()
