"""What every optimizer has to hold to. Another package tests its own by a class of these tests:

    class TestOptimizers(OptimizerConformance):
        names = ("my-optimizer",)

An optimizer may end (`exhausted`): it is then driven as far as it goes. One that takes no start proposes models that it
names; without reference genomes, as here, it proposes the initial genome and ends.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evomerge.errors import InputError
from evomerge.optimize.base import Optimizer, Start
from evomerge.optimize.build import build
from evomerge.optimize.declarations import declaration
from evomerge.optimize.ordering import rank_key
from evomerge.optimize.replay import Asked, replay, replay_interleaved
from evomerge.testing.suite import Suite, of
from evomerge.types import Dimension, Genome, Outcome, Slopes

History = list[tuple[Genome, Outcome]]
Evaluate = Callable[[Genome], Outcome]

MIXED = [
    Dimension("weight[a]", 0.0, 1.2, 0.4),
    Dimension("weight[b]", -1.0, 1.0, 0.0),
    Dimension("density", 0.01, 1.0, 0.6, log=True),
    Dimension("fixed", 0.3, 0.3, 0.3),
    Dimension("method[0]", choices=("ties", "linear", "dare"), init="linear"),
    Dimension("method[1]", choices=("ties", "linear", "dare"), init="ties"),
]
SHAPES = {
    "mixed": MIXED,
    "one number": MIXED[:1],
    "two numbers": MIXED[:2],
    "choices": MIXED[4:],
    "one choice": MIXED[4:5],
    "one option": [Dimension("method", choices=("ties",), init="ties")],
}


def bowl(genome: Genome) -> Outcome:
    """Best at 0.8 of every number and `ties` of every choice, where the floors allow it: the numbers' mean must not
    exceed 0.7, and the first one must reach 0.5."""
    numbers = np.array([value for value in genome.values() if not isinstance(value, str)] or [0.5])
    other = sum(value != "ties" for value in genome.values() if isinstance(value, str))
    shortfall = max(0.0, numbers.mean() - 0.7) + max(0.0, 0.5 - numbers[0])
    objective = -float(((numbers - 0.8) ** 2).sum()) - 0.1 * other
    return Outcome(feasible=shortfall == 0, objective=objective, shortfall=shortfall)


def with_slopes(genome: Genome, outcome: Outcome) -> Outcome:
    """As `bowl`'s objective and floors have them, for those who ask."""
    numbers = np.array([value for value in genome.values() if not isinstance(value, str)] or [0.5])
    names = [key for key, value in genome.items() if not isinstance(value, str)]
    margins = (float(0.7 - numbers.mean()), float(numbers[0] - 0.5))

    def spread(slopes: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(float(slopes[names.index(key)]) if key in names else 0.0 for key in genome)

    mean = np.full(len(numbers), -1 / len(numbers))
    slopes = spread(-2 * (numbers - 0.8)), (spread(mean), spread(np.eye(len(numbers))[0]))
    return replace(outcome, margins=margins, slopes=Slopes(*slopes, (bowl(genome).objective, margins)))


def failed(genome: Genome) -> Outcome:
    return Outcome(failed=True)


def hopeless(genome: Genome) -> Outcome:
    return Outcome(objective=bowl(genome).objective, shortfall=1.0 + float(len(str(genome))))


def unbroken(genome: Genome) -> Outcome:
    """A plateau."""
    return Outcome(feasible=True, objective=1.0, shortfall=0.0)


def made(name: str, dimensions: list[Dimension], seed: int) -> Optimizer:
    return build(name, dimensions, seed, {})


def drive(optimizer: Optimizer, trials: int, evaluate: Evaluate = bowl) -> History:
    """At most that many trials."""
    history: History = []
    while len(history) < trials and optimizer.exhausted is None:
        proposal = optimizer.ask()
        genome, sloped = proposal.genome, proposal.needs_gradient
        outcome = evaluate(genome)
        history.append((genome, with_slopes(genome, outcome) if sloped else outcome))
        optimizer.tell(*history[-1])
    return history


def genomes(history: History) -> list[Genome]:
    return [genome for genome, _ in history]


def best(history: History) -> Outcome:
    return min((outcome for _, outcome in history), key=rank_key)


def check_genome(dimensions: list[Dimension], genome: Genome) -> None:
    assert list(genome) == [dimension.key for dimension in dimensions]
    for dimension in dimensions:
        value = genome[dimension.key]
        assert value == dimension.tidy(value)
        if dimension.choices:
            assert value in dimension.choices
        else:
            assert type(value) is float
            assert dimension.low <= value <= dimension.high


@st.composite
def dimension_sets(draw: st.DrawFn) -> list[Dimension]:
    found = []
    for index in range(draw(st.integers(1, 6))):
        key = f"gene[{index}]"
        if draw(st.booleans()):
            options = tuple("abcde"[: draw(st.integers(1, 5))])
            found.append(Dimension(key, choices=options, init=draw(st.sampled_from(options))))
        else:
            log = draw(st.booleans())
            low = draw(st.floats(1e-4, 1.0) if log else st.floats(-10.0, 10.0))
            high = low + draw(st.sampled_from([0.0, 1e-3, 1.0, 50.0]))
            found.append(Dimension(key, low, high, draw(st.floats(low, high)), log))
    return found


def juggle(optimizer: Optimizer, record: list[Asked], trials: int, evaluate: Evaluate = bowl) -> None:
    """Goes on from `record` until it holds so many trials, or all there are: up to four are out at a time, any of them
    ends next. What happens depends on the record alone."""
    while len(record) < trials:
        told = sum(asked.outcome is not None for asked in record)
        out = [at for at, asked in enumerate(record) if asked.outcome is None]
        draw = random.Random(f"{len(record)}, {told}")
        if not out and optimizer.generation.askable < 1:
            assert optimizer.exhausted is not None
            return
        if optimizer.generation.askable > 0 and len(out) < 4 and (not out or draw.random() < 0.6):
            record.append(Asked(optimizer.ask().genome, told))
        else:
            at = draw.choice(out)
            genome, outcome = record[at].genome, evaluate(record[at].genome)
            optimizer.tell(genome, outcome)
            record[at] = Asked(genome, record[at].n_told, outcome, told)


def trade(genome: Genome) -> Outcome:
    """Two slices that cannot both be had: one wants the first two numbers at their low ends, the other at their high
    ends; floors cut off the ends of the front. `linear` costs both of them. 1 in 40 genomes is feasible."""
    a, b = float(genome["weight[a]"]) / 1.2, (float(genome["weight[b]"]) + 1) / 2
    cost = 0.3 * (genome["method[0]"] == "linear") + abs(float(genome["density"]) - 0.5)
    values = (1 - (a + b) / 2 - abs(a - b) - cost, (a + b) / 2 - abs(a - b) - cost)
    margins = tuple(value - 0.1 for value in values)
    shortfall = sum(max(0.0, -margin) for margin in margins)
    return Outcome(False, shortfall == 0, sum(values) / 2, shortfall, margins, values)


def covered(history: History) -> float:
    """The area that the feasible ones dominate (a Monte Carlo share of the unit square)."""
    points = np.array([outcome.values for _, outcome in history if outcome.feasible]).reshape(-1, 2)
    grid = (np.stack(np.meshgrid(np.arange(50), np.arange(50)), axis=-1).reshape(-1, 1, 2) + 0.5) / 50
    dominated = (points >= grid).all(axis=-1)
    return float(np.any(dominated, axis=1).mean())


def _searches(name: str) -> bool:
    return declaration(name).takes_start


def _trades(name: str) -> bool:
    return declaration(name).objectives > 1


class OptimizerConformance(Suite):
    """Tests of the optimizers `names`.

    Attributes:
        unseeded: those of them that draw nothing from the seed.
    """

    unseeded: ClassVar[Sequence[str]] = ()

    @pytest.mark.parametrize("shape", SHAPES)
    def test_proposals_are_legal_and_start_at_the_initial_values(self, name: str, shape: str) -> None:
        history = drive(made(name, SHAPES[shape], 3), 50)
        assert history[0][0] == {d.key: d.init for d in SHAPES[shape]}
        for genome in genomes(history):
            check_genome(SHAPES[shape], genome)

    def test_the_seed_decides(self, name: str) -> None:
        first, again, other = (genomes(drive(made(name, MIXED, seed), 40)) for seed in (0, 0, 1))
        assert first == again
        assert (first != other) == (name not in self.unseeded)

    def test_global_generators_are_neither_read_nor_moved(self, name: str) -> None:
        quiet = genomes(drive(made(name, MIXED, 0), 40))

        def reseeding(genome: Genome) -> Outcome:  # as lm-eval does before each evaluation
            random.seed(7), np.random.seed(7), torch.manual_seed(7)
            return bowl(genome)

        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        assert genomes(drive(made(name, MIXED, 0), 40, reseeding)) == quiet

        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        drive(made(name, MIXED, 0), 40)
        assert random.getstate() == before[0]
        assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
        assert torch.equal(torch.get_rng_state(), before[2])

    @pytest.mark.parametrize("shape", ["mixed", "choices"])
    @pytest.mark.parametrize("evaluate", [bowl, failed, unbroken])
    def test_resuming_anywhere_equals_going_on(self, name: str, shape: str, evaluate: Evaluate) -> None:
        whole = drive(made(name, SHAPES[shape], 5), 34, evaluate)
        for cut in (cut for cut in (0, 1, 7, 10, 19, 24, 33) if cut < len(whole)):
            resumed = made(name, SHAPES[shape], 5)
            replay(resumed, whole[:cut])
            if cut % 2:  # killed with a trial in flight: it is asked again
                assert resumed.ask().genome == whole[cut][0]
                resumed.tell(*whole[cut])
                cut += 1
            assert genomes(drive(resumed, len(whole) - cut, evaluate)) == genomes(whole[cut:])

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("evaluate", [failed, hopeless, unbroken])
    def test_a_run_of_bad_news_is_survived(self, name: str, shape: str, evaluate: Evaluate) -> None:
        optimizer = made(name, SHAPES[shape], 0)
        for genome in genomes(drive(optimizer, 60, evaluate)):
            check_genome(SHAPES[shape], genome)
        later = drive(optimizer, 60)
        if shape == "mixed" and optimizer.exhausted is None:
            assert best(later).shortfall < 0.1  # what it learned was wrong, and is corrected

    @of(_searches)
    @pytest.mark.parametrize("init", [0.0, 0.0106, 0.1, 1.19, 1.2])
    def test_the_first_genome_is_where_it_is_told_to_begin(self, name: str, init: float) -> None:
        dimensions = [Dimension(f"weight[{i}]", 0.0, 1.2, 0.5) for i in range(3)]
        begin: Genome = {d.key: init for d in dimensions}
        assert build(name, dimensions, 0, {}, Start(begin)).ask().genome == begin

    @of(_searches)
    def test_single_failures_and_numbers_that_are_none_are_survived(self, name: str) -> None:
        def shaky(genome: Genome) -> Outcome:
            kind = random.Random(str(genome)).randrange(4)
            broken = [failed(genome), Outcome(feasible=True, objective=float("nan"), shortfall=0.0)]
            return broken[kind] if kind < 2 else bowl(genome)

        history = drive(made(name, MIXED, 0), 100, shaky)
        assert best(history).feasible
        assert best(history).objective > -2

    @of(_searches)
    def test_feasible_region_is_found_from_outside(self, name: str) -> None:
        start = [Dimension(f"weight[{i}]", 0.0, 1.2, 0.1) for i in range(6)]
        history = drive(made(name, start, 0), 100)
        assert not history[0][1].feasible
        assert best(history).feasible

    def test_any_set_of_dimensions(self, name: str) -> None:
        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
        @given(dimension_sets(), st.integers(0, 2**31 - 1), st.integers(0, 29))
        def holds(dimensions: list[Dimension], seed: int, cut: int) -> None:
            history = drive(made(name, dimensions, seed), 30)
            cut %= len(history)
            for genome in genomes(history):
                check_genome(dimensions, genome)
            resumed = made(name, dimensions, seed)
            replay(resumed, history[:cut])
            if cut < len(history):
                assert resumed.ask().genome == history[cut][0]

        holds()

    def test_the_end_is_said(self, name: str) -> None:
        """Who is exhausted has nothing open, and says why; told again, it ends there again."""
        optimizer = made(name, MIXED[4:], 0)
        history = drive(optimizer, 30)
        assert optimizer.exhausted is not None
        assert optimizer.generation.askable == 0
        with pytest.raises(RuntimeError, match=f"nothing is left to propose: {optimizer.exhausted}"):
            optimizer.ask()
        resumed = made(name, MIXED[4:], 0)
        replay(resumed, history)
        assert resumed.exhausted == optimizer.exhausted
        with pytest.raises(InputError, match=f"trial {len(history)} .* where none is left"):
            replay(made(name, MIXED[4:], 0), [*history, history[0]])

    @pytest.mark.parametrize("shape", ["mixed", "choices", "one number"])
    @pytest.mark.parametrize("evaluate", [bowl, failed])
    def test_asynchronously_any_order_is_learnt_from_and_replayed(
        self, name: str, shape: str, evaluate: Evaluate
    ) -> None:
        whole: list[Asked] = []
        snapshots = []
        options: dict[str, Any] = {}
        most = 40
        optimizer = build(name, SHAPES[shape], 2, options, asynchronous=True)
        for length in (1, 7, most):
            juggle(optimizer, whole, length, evaluate)
            snapshots.append(list(whole))
        for record in snapshots:
            resumed = build(name, SHAPES[shape], 2, options, asynchronous=True)
            replay_interleaved(resumed, record)
            juggle(resumed, record, most, evaluate)
            assert record == whole
        for asked in whole:
            check_genome(SHAPES[shape], asked.genome)
        assert len(whole) < 20 or any(asked.place != at for at, asked in enumerate(whole))

    @of(_trades)
    def test_a_front_is_found_and_resumed(self, name: str) -> None:
        def run(name: str, seed: int, objectives: int = 2) -> History:
            return drive(build(name, MIXED, seed, {}, objectives=objectives), 120, trade)

        own, chance = [run(name, seed) for seed in range(3)], [run("random", seed, 1) for seed in range(3)]
        assert np.mean([covered(h) for h in own]) > 1.2 * np.mean([covered(h) for h in chance])
        resumed = build(name, MIXED, 0, {}, objectives=2)
        replay(resumed, own[0][:47])
        assert genomes(drive(resumed, 20, trade)) == genomes(own[0][47:67])

    @of(_trades)
    def test_fronts_without_values_are_survived(self, name: str) -> None:
        def broken(genome: Genome) -> Outcome:
            kind = len(str(genome)) % 3
            nan = Outcome(feasible=True, objective=0.5, shortfall=0.0, values=(0.5, float("nan")))
            return [failed(genome), nan, Outcome(shortfall=float("inf"), margins=(float("nan"), 0.1), values=())][kind]

        optimizer = build(name, MIXED, 0, {}, objectives=2)
        drive(optimizer, 45, broken)
        assert any(outcome.feasible for _, outcome in drive(optimizer, 120, trade))
