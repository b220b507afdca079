import warnings
from collections import Counter
from statistics import NormalDist

import numpy as np
import pytest

from evomerge.optimize.base import Reason, Start
from evomerge.optimize.cma_es import CmaEs
from evomerge.types import Dimension, Genome, Outcome


def numbers(count: int, init: float = 0.4) -> list[Dimension]:
    return [Dimension(f"weight[{i}]", 0.0, 1.2, init) for i in range(count)]


def choices(count: int, options: str = "abc", init: str = "b") -> list[Dimension]:
    return [Dimension(f"method[{i}]", choices=tuple(options), init=init) for i in range(count)]


def score(genome: Genome) -> Outcome:
    """Best with 0.9 in every number; `a` is better than any other choice."""
    distance = sum((value - 0.9) ** 2 for value in genome.values() if not isinstance(value, str))
    other = sum(value != "a" for value in genome.values() if isinstance(value, str))
    return Outcome(feasible=True, objective=-distance - 0.3 * other, shortfall=0.0)


def drive(optimizer: CmaEs, trials: int) -> list[Genome]:
    asked = []
    while len(asked) < trials and optimizer.exhausted is None:
        asked.append(optimizer.ask().genome)
        optimizer.tell(asked[-1], score(asked[-1]))
    return asked


@pytest.mark.parametrize("seed", range(3))
def test_choices_stay_open_while_numbers_converge(seed: int) -> None:
    optimizer = CmaEs([*choices(3), *numbers(4)], seed)
    size = optimizer._distribution.population
    drive(optimizer, 20 * size)
    late = drive(optimizer, 20 * size)
    proposed = Counter(genome[f"method[{i}]"] for genome in late for i in range(3))
    assert proposed["a"] > 0.7 * proposed.total()
    assert min(proposed["b"], proposed["c"]) > 0
    # at least one gene of a generation leaves its favourite: 20 expected, 8 is almost three deviations short
    assert proposed.total() - proposed["a"] >= 8
    assert max(score(genome).objective for genome in late) > -0.05  # of -1.9 at the start
    assert optimizer._restarts == 0


def test_margin_is_the_least_probability() -> None:
    optimizer = CmaEs([*choices(2), *numbers(3)], 0)
    alpha = 1 / (5 * optimizer._distribution.population)
    es = optimizer._distribution._es
    drive(optimizer, 40 * es.popsize)
    covariance = np.outer(es.stds, es.stds) * es.sm.correlation_matrix
    for place in optimizer._encoding.choice_coordinates:
        mean, spread = es.mean[place], covariance[place, place]
        best = int(np.argmax(mean))
        for other in {0, 1, 2} - {best}:
            std = np.sqrt(spread[best, best] + spread[other, other] - 2 * spread[best, other])
            assert NormalDist().cdf((mean[other] - mean[best]) / std) > 0.999 * alpha


def test_choices_alone_are_not_proposed_twice() -> None:
    asked = drive(CmaEs(choices(6), 0), 300)
    assert len({tuple(genome.values()) for genome in asked}) == 300
    assert {tuple(genome.values()) for genome in drive(CmaEs(choices(2), 0), 30)} == {
        (a, b) for a in "abc" for b in "abc"
    }


@pytest.mark.parametrize("population", ["auto", 3, 5])
@pytest.mark.parametrize("count", [1, 2, 10])
def test_small_populations_and_few_genes(population: int | str, count: int) -> None:
    optimizer = CmaEs(numbers(count), 0, population=population)
    assert population == "auto" or optimizer._distribution.population == population
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = drive(optimizer, 300)
    assert max(score(genome).objective for genome in asked) > -0.05


def test_a_collapsed_search_starts_again_around_the_best() -> None:
    optimizer = CmaEs(numbers(1), 0)
    while (before := optimizer._restarts) < 2:
        optimizer.tell(genome := optimizer.ask().genome, score(genome))
        assert len(optimizer.history) < 600
        if (before, optimizer._restarts) == (0, 1):
            assert optimizer._distribution._es.mean[0] * 1.2 == pytest.approx(0.9, abs=1e-4)
            assert optimizer._distribution._es.stds[0] == pytest.approx(0.2, rel=1e-3)
    again = CmaEs(numbers(1), 0)
    assert drive(again, len(optimizer.history)) == [genome for genome, _ in optimizer.history]
    assert again.ask().genome == optimizer.ask().genome


def test_broken_numerics_start_again() -> None:
    optimizer = CmaEs(numbers(3), 0)
    drive(optimizer, 3)
    optimizer._distribution._es.sm.C[:] = np.nan
    drive(optimizer, 2 * optimizer._distribution.population)
    assert optimizer._restarts == 1


def test_a_plateau_widens_the_search() -> None:
    optimizer = CmaEs(numbers(3), 0)
    before = optimizer._distribution._es.stds.max()
    for _ in range(optimizer._distribution.population):
        optimizer.tell(optimizer.ask().genome, Outcome(feasible=True, objective=0.5, shortfall=0.0))
    assert optimizer._distribution._es.stds.max() == pytest.approx(1.5 * before)
    assert optimizer._restarts == 0


def test_an_optimum_on_the_border_is_reached() -> None:
    optimizer = CmaEs(numbers(5), 0)
    for _ in range(400):
        genome = optimizer.ask().genome
        objective = sum(value for value in genome.values() if not isinstance(value, str))
        optimizer.tell(genome, Outcome(feasible=True, objective=objective, shortfall=0.0))
    assert max(outcome.objective for _, outcome in optimizer.history) > 5 * 1.2 - 0.01


def test_nothing_is_printed_or_written(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    filters = list(warnings.filters)
    drive(CmaEs(numbers(2), 0), 60)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert warnings.filters == filters


def test_eigenvector_signs_do_not_matter() -> None:
    """They depend on the processor and the number of threads, on which resuming must not."""
    plain, flipped = (CmaEs([*numbers(8), *choices(2)], 0) for _ in range(2))
    signs = np.where(np.arange(flipped._distribution._es.N) % 3, -1.0, 1.0)

    def flip(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors * signs

    flipped._distribution._es.sm.eigenmethod = flip
    assert drive(plain, 200) == drive(flipped, 200)
    assert plain._distribution._es.sm.B.tolist() != flipped._distribution._es.sm.B.tolist()


def test_where_nothing_better_comes_it_starts_again_with_more_samples() -> None:
    """In turns: around the best with as many samples as at first, somewhere else with twice as many each time."""
    optimizer, sizes = CmaEs(numbers(2), 0, population=4), [4]
    for number in range(2000):
        genome = optimizer.ask().genome
        # as uneven as accuracies on few items; the best is found by chance, early
        noise = hash_of(genome) % 7
        optimizer.tell(genome, Outcome(feasible=True, objective=9.0 if number == 3 else float(noise), shortfall=0.0))
        if len(sizes) <= optimizer._restarts:
            sizes.append(optimizer._distribution.population)
        if len(sizes) == 5:
            break
    assert sizes == [4, 4, 8, 4, 16]


def hash_of(genome: Genome) -> int:
    return int(sum(float(value) for value in genome.values()) * 1e6)


def test_many_genes_are_searched_without_correlations() -> None:
    optimizer = CmaEs(numbers(120), 0)
    first = score(optimizer._initial()).objective
    asked = drive(optimizer, 300)
    assert optimizer._distribution._separable
    assert max(score(genome).objective for genome in asked) > 0.8 * first


def test_the_best_are_scored_again_and_count_with_their_mean() -> None:
    optimizer = CmaEs(numbers(3), 0, population=6, repeats=2)
    first = [optimizer.ask() for _ in range(optimizer.generation.askable)]
    assert {proposal.reason for proposal in first} == {Reason.SEARCH}
    generation = [proposal.genome for proposal in first]
    assert len(generation) == 6
    for place, genome in enumerate(generation):
        optimizer.tell(genome, Outcome(feasible=True, objective=float(place), shortfall=0.0))
    again = [optimizer.ask() for _ in range(optimizer.generation.askable)]
    assert [proposal.genome for proposal in again] == [generation[5], generation[4]]
    assert {(p.reason, p.label) for p in again} == {(Reason.RE_EVALUATION, "scored again, as scores are noisy")}
    samples = list(optimizer._generation)
    optimizer.tell(generation[5], Outcome(shortfall=1.0, objective=-99.0))
    optimizer.tell(generation[4], Outcome(feasible=True, objective=2.0, shortfall=0.0))
    assert optimizer.generation.askable == 6
    assert [sample.outcome.objective for sample in samples] == [0, 1, 2, 3, 3, -47]
    assert [sample.outcome.feasible for sample in samples] == [True] * 5 + [False]


def test_generations_give_all_workers_work() -> None:
    assert CmaEs(numbers(4), 0)._distribution.population == 8
    assert CmaEs(numbers(4), 0, num_workers=5)._distribution.population == 10


def _first_samples(worse: float | None, sigma: float | str = "auto", start: float = 0.0) -> np.ndarray:
    """[20, 6] the samples around a start where `worse` is known to be worse in all genes."""
    dimensions = numbers(6)
    at = lambda value: {d.key: value for d in dimensions}  # noqa: E731
    known = [(at(start), Outcome(feasible=True, objective=1.0, shortfall=0.0))]
    if worse is not None:
        known.append((at(worse), Outcome(feasible=False, objective=0.0, shortfall=1.0)))
    optimizer = CmaEs(dimensions, 0, population=21, sigma=sigma, start=Start(at(start), known=known))
    genomes = [optimizer.ask().genome for _ in range(21)]
    return np.array([list(genome.values()) for genome in genomes[1:]])


def test_the_first_samples_stay_clear_of_what_is_known_to_be_worse() -> None:
    wide, narrow = _first_samples(None), _first_samples(0.2)
    assert wide.mean() > 0.12  # all lie on one side of the bound
    assert 0.02 < narrow.mean() < 0.2 / 3
    assert np.array_equal(_first_samples(1.2), wide)  # far away
    assert np.array_equal(_first_samples(0.2, sigma=0.2), wide)  # a step of one's own is left alone
    inside = _first_samples(0.7, start=0.5)  # around a start inside of the bounds they lie on all sides
    assert np.array_equal(inside, _first_samples(None, start=0.5))
