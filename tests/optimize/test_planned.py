"""The optimizers that follow a plan, in a space of known models."""

import math

import pytest

from evomerge.optimize.base import Start
from evomerge.optimize.build import build
from evomerge.optimize.declarations import OptionError, check_reference_genomes
from evomerge.types import Dimension, Genome, Outcome
from tests.optimize.known_models import drive, fine, start, weights

TWO, THREE = ("a", "b"), ("a", "b", "c")


def near(*targets: float):
    """Better the nearer each number is to its target."""

    def evaluate(genome: Genome) -> Outcome:
        return fine(-sum((float(value) - t) ** 2 for value, t in zip(genome.values(), targets, strict=True)))

    return evaluate


def shares(genomes: list[Genome]) -> list[float]:
    return [float(next(iter(genome.values()))) for genome in genomes]


# Grid


def test_a_grid_is_every_combination_once() -> None:
    dimensions = [
        Dimension("weight", 0.0, 1.0, 0.5),
        Dimension("density", 0.01, 1.0, 0.2, log=True),
        Dimension("method", choices=("ties", "linear"), init="linear"),
    ]
    optimizer = build("grid", dimensions, 0, {"levels": 3})
    first, *points = drive(optimizer, lambda genome: fine(0.0))
    assert first == {"weight": 0.5, "density": 0.2, "method": "linear"}
    assert len(points) == 18
    assert {point["density"] for point in points} == {0.01, 0.1, 1.0}
    assert optimizer.exhausted == "all 18 points of the grid are scored"


def test_a_grid_that_is_cut_off_is_spread() -> None:
    dimensions = [Dimension(f"weight[{i}]") for i in range(40)]
    optimizer = build("grid", dimensions, 0, {"tie": "none", "levels": 5})
    _, *points = drive(optimizer, lambda genome: fine(0.0), most=120)
    for dimension in dimensions:
        assert {point[dimension.key] for point in points} == {0.0, 0.25, 0.5, 0.75, 1.0}


@pytest.mark.parametrize(
    ("tie", "groups", "points"),
    [("none", 2, 81), ("layers", 2, 9), ("all", 2, 3), ("auto", 2, 81), ("auto", 3, 9), ("layers+modules", 3, 9)],
)
def test_a_grid_ties_genes(tie: str, groups: int, points: int) -> None:
    optimizer = build("grid", weights(TWO, groups), 0, {"tie": tie})
    asked = drive(optimizer, lambda genome: fine(0.0))
    assert optimizer.exhausted == f"all {points} points of the grid are scored"
    tied = [len({genome[f"weight[a,{i}]"] for i in range(groups)}) == 1 for genome in asked]
    assert all(tied) == (points < 81)


def test_a_grid_leaves_out_what_is_known() -> None:
    known = start(weights(TWO, high=1.0), TWO, near(0.4, 0.4))
    asked = drive(build("grid", weights(TWO, high=1.0), 0, {"levels": 2}, known), near(0.4, 0.4))
    assert [tuple(genome.values()) for genome in asked] == [(1.0, 1.0)]  # the other corners are base, a and b


# Soups


def test_the_uniform_soup_is_one_trial_unless_it_is_known() -> None:
    dimensions = weights(THREE)
    optimizer = build("uniform-soup", dimensions, 0, {}, start(dimensions, THREE))
    assert drive(optimizer, near(0, 0, 0)) == [dict.fromkeys((d.key for d in dimensions), 0.333333)]
    known = build("uniform-soup", dimensions, 0, {}, start(dimensions, THREE, near(0, 0, 0)))
    assert (known.generation.askable, known.exhausted) == (0, "the uniform average is scored")


@pytest.mark.parametrize("known", [True, False])
def test_a_greedy_soup_takes_the_sources_best_first(known: bool) -> None:
    """b, then c, which helps, then a, which does not."""
    scores = {(0, 1, 0): 0.7, (0, 0, 1): 0.6, (1, 0, 0): 0.5, (0, 0.5, 0.5): 0.8}

    def evaluate(genome: Genome) -> Outcome:
        return fine(scores.get(tuple(genome.values()), 0.1))

    begin = start(weights(THREE), THREE, evaluate if known else None)
    optimizer = build("greedy-soup", weights(THREE), 0, {}, begin)
    asked = drive(optimizer, evaluate)
    mixtures = asked if known else asked[3:]
    uniform = (0.333333, 0.333333, 0.333333)
    assert [tuple(g.values()) for g in mixtures] == [(0.0, 0.5, 0.5), *([] if known else [uniform])]
    assert optimizer.exhausted == "every source was tried; in the soup are b, c"


def test_a_greedy_soup_takes_a_known_mixture_into_account() -> None:
    """The average of the two best is known, as it is the uniform one, and better than either."""
    optimizer = build("greedy-soup", weights(TWO), 0, {}, start(weights(TWO), TWO, near(0.5, 0.5)))
    assert optimizer.exhausted == "every source was tried; in the soup are a, b"


# Path


def test_a_path_goes_through_the_average_and_finer_around_the_best() -> None:
    dimensions = weights(TWO, 2)
    optimizer = build("path", dimensions, 0, {}, start(dimensions, TWO, near(*[0.7] * 4)))
    asked = drive(optimizer, near(*[0.7] * 4))
    assert all(len(set(genome.values())) == 1 for genome in asked)
    assert shares(asked[:10]) == pytest.approx([0.12 * i for i in range(1, 11)])  # 0 is the base, and known
    assert min(abs(share - 0.7) for share in shares(asked)) <= 0.01
    assert len(asked) == 10 + 8  # from 1/10 to 1/160 of the line, two points a time
    assert optimizer.exhausted == "the line from base to uniform is scored, around its best point to 0.01"


def test_paths_to_every_source_and_between_two() -> None:
    dimensions = weights(THREE, high=1.0)
    fan = build("path", dimensions, 0, {"end": "sources", "points": 3, "tolerance": 1}, start(dimensions, THREE))
    asked = {tuple(genome.values()) for genome in drive(fan, near(0, 0, 0))}
    assert asked == {(0, 0, 0), (0.5, 0, 0), (1, 0, 0), (0, 0.5, 0), (0, 1, 0), (0, 0, 0.5), (0, 0, 1)}
    line = build("path", dimensions, 0, {"begin": "a", "end": "b", "points": 5}, start(dimensions, THREE))
    asked = drive(line, near(0.25, 0.75, 0))
    assert [tuple(genome.values()) for genome in asked[:5]] == [(1 - t, t, 0) for t in (0, 0.25, 0.5, 0.75, 1)]
    short = build("path", dimensions, 0, {"reach": 1.0, "points": 2}, start(dimensions, THREE))
    assert shares([short.ask().genome for _ in range(short.generation.askable)]) == [0.0, 0.333333]


def test_failures_on_a_path_rank_last() -> None:
    def half(genome: Genome) -> Outcome:
        share = shares([genome])[0]
        return Outcome(failed=True) if share < 0.55 else fine(-share)

    asked = drive(build("path", weights(TWO, high=1.0), 0, {}, start(weights(TWO, high=1.0), TWO)), half)
    assert min(share for share in shares(asked) if share >= 0.55) <= 0.56


# Coordinate


def test_coordinates_move_together_by_source() -> None:
    dimensions = weights(TWO, 2)
    optimizer = build("coordinate", dimensions, 0, {"warm_start": False})
    asked = drive(optimizer, near(0.9, 0.9, 0.2, 0.2))
    assert all(genome["weight[a,0]"] == genome["weight[a,1]"] for genome in asked)
    best = max(asked, key=lambda genome: near(0.9, 0.9, 0.2, 0.2)(genome).objective)
    assert list(best.values()) == pytest.approx([0.9, 0.9, 0.2, 0.2], abs=0.0125 * 1.2)
    assert optimizer.exhausted == "no group of genes is better off by a step of 0.0125"


@pytest.mark.parametrize(("by", "apart"), [("sources", 2), ("layers", 3), ("genes", 1), ("each", 6)])
def test_what_moves_together(by: str, apart: int) -> None:
    optimizer = build("coordinate", weights(TWO, 3), 0, {"by": by, "step": 0.1, "tolerance": 1, "warm_start": False})
    assert len(drive(optimizer, lambda genome: fine(0.0))) == 1 + 2 * apart  # each group up and down once


def test_coordinates_begin_with_the_best_that_is_known() -> None:
    dimensions = [*weights(TWO), Dimension("method", choices=("ties", "task_arithmetic"), init="ties", gene="method")]
    methods = ("ties", "task_arithmetic")

    def evaluate(genome: Genome) -> Outcome:
        return fine(-math.dist((1.0, 0.1), [v for v in genome.values() if not isinstance(v, str)]))

    known = start(dimensions, TWO, evaluate, methods)
    asked = drive(build("coordinate", dimensions, 0, {"warm_start": False}, known), evaluate)
    assert shares(asked[:3]) == pytest.approx([0.5, 1.2, 0.76])  # the initial genome, then around source a
    warm = drive(build("coordinate", dimensions, 0, {}, known), evaluate)
    assert evaluate(warm[-1]).objective > -0.1
    assert len(warm) < 60


# All of them


@pytest.mark.parametrize("name", ["greedy-soup", "grid", "path", "coordinate"])
def test_outcomes_may_come_in_any_order(name: str) -> None:
    dimensions, evaluate = weights(THREE), near(0.7, 0.1, 0.4)
    options = {"warm_start": False} if name == "coordinate" else {}
    in_order, reversed_ = (
        build(name, dimensions, 0, options, start(dimensions, THREE), asynchronous=True) for _ in range(2)
    )
    asked = drive(in_order, evaluate)
    found: list[Genome] = []
    while reversed_.exhausted is None:
        batch = [reversed_.ask().genome for _ in range(reversed_.generation.askable)]
        for genome in reversed(batch):
            reversed_.tell(genome, evaluate(genome))
        found += batch
    assert found == asked


def test_a_warm_start_in_which_all_is_known_goes_on() -> None:
    dimensions, evaluate = weights(TWO), near(0.3, 0.3)
    found = start(dimensions, TWO).references
    outcomes = [(reference.genome, evaluate(reference.genome)) for reference in found.values()]
    known = Start({"weight[a,0]": 0.0, "weight[b,0]": 0.0}, found, outcomes)
    asked = drive(build("coordinate", dimensions, 0, {}, known), evaluate)
    assert not any(reference.genome in asked for reference in found.values())
    assert list(max(asked, key=lambda g: evaluate(g).objective).values()) == pytest.approx([0.3, 0.3], abs=0.03)


@pytest.mark.parametrize(
    ("name", "options", "methods", "key", "message"),
    [
        (
            "uniform-soup",
            {},
            ("ties",),
            "name",
            "goes by the uniform average, which the space does not hold; search `me",
        ),
        ("greedy-soup", {}, ("ties",), "name", "goes by the uniform average, which the space does not hold"),
        ("path", {}, ("linear",), "begin", "goes by the base, which the space does not hold"),
        ("path", {"end": "sources"}, ("model_stock",), "begin", "goes by the base"),
        ("path", {"begin": "a", "end": "uniform"}, ("dare_ties",), "end", "goes by the uniform average"),
        ("path", {"end": "c"}, ("task_arithmetic",), "end", "knows no model 'c'; use one of: a, b, base, equal"),
        ("path", {"end": "unifrom"}, ("task_arithmetic",), "end", "did you mean 'uniform'"),
        ("path", {"end": "base"}, ("task_arithmetic",), "end", "begins and ends with the same model"),
    ],
)
def test_spaces_without_the_models_are_refused(name, options, methods, key, message) -> None:
    found = start(weights(TWO), TWO, methods=methods).references
    with pytest.raises(OptionError, match=message) as caught:
        check_reference_genomes(name, options, TWO, found)
    assert caught.value.key == key


@pytest.mark.parametrize("name", ["uniform-soup", "greedy-soup"])
def test_a_soup_of_one_source_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="nothing to average with one source") as caught:
        check_reference_genomes(name, {}, ("a",), start(weights(("a",)), ("a",)).references)
    assert caught.value.key == "name"


def test_spaces_with_the_models_are_accepted() -> None:
    found = start(weights(TWO), TWO).references
    for name, options in (("path", {}), ("path", {"end": "sources"}), ("uniform-soup", {}), ("grid", {}), ("tpe", {})):
        check_reference_genomes(name, options, TWO, found)
