"""What everybody would try first comes first, and is learned from."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.optimize.base import Reason, Start
from evomerge.optimize.build import build
from evomerge.optimize.planned import Planned
from evomerge.optimize.replay import replay
from evomerge.optimize.warm_start import WarmStart
from evomerge.space.reference_genomes import ReferenceGenome, ReferenceKind, reference_genomes, subset_genome
from evomerge.types import Dimension, Genome, Outcome

SOURCES = ("a", "b", "c")
WEIGHTS = [Dimension(f"weight[{s}]", 0.0, 1.0, 0.5, gene="weight", place={"sources": s}) for s in SOURCES]
REFERENCES = reference_genomes(WEIGHTS, SOURCES, ("task_arithmetic",), {})


def score(goal: tuple[float, ...]):
    def at(genome: Genome) -> Outcome:
        distance = float(((np.array(list(genome.values()), dtype=float) - goal) ** 2).sum())
        return Outcome(feasible=True, objective=-distance, shortfall=0.0)

    return at


def begun(goal: tuple[float, ...], name: str = "surrogate", **about) -> tuple[WarmStart, list[Genome]]:
    """A search, and what it proposed before its optimizer began."""
    at = score(goal)
    scored = [r.genome for r in REFERENCES.values() if r.kind is not ReferenceKind.EQUAL_WEIGHTS]
    known = [(genome, at(genome)) for genome in scored]
    optimizer = build(name, WEIGHTS, 0, {}, Start(references=REFERENCES, known=known, **about))
    assert isinstance(optimizer, WarmStart)
    asked = []
    while isinstance(optimizer._active, Planned):
        batch = [optimizer.ask().genome for _ in range(optimizer.generation.askable)]
        for genome in batch:
            optimizer.tell(genome, at(genome))
        asked += batch
    return optimizer, asked


def test_init_and_ladder_come_first_then_the_soup() -> None:
    _, asked = begun((0.1, 0.1, 0.1))
    assert [tuple(g.values()) for g in asked[:5]] == [(0.5,) * 3, *((w,) * 3 for w in (0.2, 0.4, 0.6, 0.8))]
    parents = [tuple(REFERENCES[label].genome.values()) for label in ("base", *SOURCES)]
    assert not set(parents) & {tuple(g.values()) for g in asked}  # the references are known
    # the base is as good as (0.2, 0.2, 0.2), and the first of equals; then the average, which does not help
    assert tuple(asked[5].values()) == (0.166666, 0.166666, 0.166666)


@pytest.mark.parametrize("name", ["surrogate", "cma-es", "tpe"])
def test_the_search_begins_with_the_best_and_knows_all(name: str) -> None:
    optimizer, asked = begun((0.9, 0.1, 0.1), name)
    start = optimizer._active.start
    assert start.genome == REFERENCES["a"].genome
    assert len(start.known) == len(asked) + 5


def test_reasons_are_given() -> None:
    optimizer = build("surrogate", WEIGHTS, 0, {}, Start(references=REFERENCES))
    asked = []
    for _ in range(16):
        proposal = optimizer.ask()
        asked.append(proposal)
        optimizer.tell(proposal.genome, score((0.3, 0.3, 0.3))(proposal.genome))
    labels = [proposal.label for proposal in asked]
    assert labels[1:6] == ["base", "a", "b", "c", "uniform"]
    assert labels[6:10] == ["equal 0.2", "equal 0.4", "equal 0.6", "equal 0.8"]
    assert labels[10] == "greedy soup"
    reasons = [proposal.reason for proposal in asked]
    assert reasons[:11] == [Reason.SEARCH, *[Reason.REFERENCE] * 9, Reason.SOUP]
    assert reasons[-1] is Reason.SEARCH


def test_who_begins_with_another_winner_needs_no_ladder() -> None:
    winner = {"weight[a]": 0.7, "weight[b]": 0.2, "weight[c]": 0.1}
    _, asked = begun((0.7, 0.2, 0.1), genome=winner)
    assert asked == [winner]


def test_resume_anywhere_in_the_warm_start() -> None:
    at, history = score((0.3, 0.5, 0.1)), []
    whole = build("surrogate", WEIGHTS, 0, {}, Start(references=REFERENCES))
    for _ in range(20):
        genome = whole.ask().genome
        history.append((genome, at(genome)))
        whole.tell(*history[-1])
    for cut in range(0, 20, 3):
        again = build("surrogate", WEIGHTS, 0, {}, Start(references=REFERENCES))
        replay(again, history[:cut])
        assert again.ask().genome == history[cut][0]


def test_a_source_with_the_name_of_the_ladder_is_a_parent() -> None:
    def soups(sources: tuple[str, ...]) -> list[tuple[float | str, ...]]:
        places = [{"sources": source} for source in sources]
        dimensions = [Dimension(f"weight[{p['sources']}]", init=0.5, gene="weight", place=p) for p in places]
        references = reference_genomes(dimensions, sources, ("task_arithmetic",), {})
        optimizer = build("surrogate", dimensions, 0, {}, Start(references=references))
        asked = []
        for _ in range(16):
            asked.append(optimizer.ask())
            optimizer.tell(asked[-1].genome, score((0.4, 0.0, 0.6))(asked[-1].genome))
        return [tuple(proposal.genome.values()) for proposal in asked if proposal.reason is Reason.SOUP]

    assert len(soups(SOURCES)) == 3
    assert soups(("equal-mix", "b", "c")) == soups(SOURCES)


def test_subsets_of_a_pool_come_before_the_ladder_and_the_soup_tries_what_is_in_them() -> None:
    sources = ("a", "b", "c", "d")
    places = [{"sources": s} for s in sources]
    weights = [Dimension(f"weight[{s['sources']}]", 0.0, 1.0, 0.5, gene="weight", place=s) for s in places]
    included = [Dimension(f"include[{s['sources']}]", 0.0, 1.0, 1.0, gene="include", place=s) for s in places]
    dimensions = [*weights, *included]
    subset = ReferenceGenome(subset_genome(dimensions, ("task_arithmetic",), {}, ("b", "c")), kind=ReferenceKind.SUBSET)
    assert tuple(subset.genome.values()) == (0.0, 0.5, 0.5, 0.0, 0.0, 1.0, 1.0, 0.0)
    references = {"experts b + c": subset, **reference_genomes(dimensions, sources, ("task_arithmetic",), {})}
    at = score((0.0, 0.4, 0.6, 0.0, 0.0, 1.0, 1.0, 0.0))
    known = [(r.genome, at(r.genome)) for label, r in references.items() if label in ("base", *sources, "uniform")]
    optimizer = build("surrogate", dimensions, 0, {}, Start(references=references, known=known))
    asked = []
    for _ in range(10):
        asked.append(optimizer.ask())
        optimizer.tell(asked[-1].genome, at(asked[-1].genome))
    assert [p.label for p in asked[:3]] == ["", "experts b + c", "equal 0.2"]
    soups = [p.genome for p in asked if p.reason is Reason.SOUP]
    assert 0 < len(soups) <= 2
    for genome in soups:  # a and d are in no subset, and what is mixed takes part
        assert [genome[f"include[{s}]"] for s in sources] == [0.0, 1.0, 1.0, 0.0]
        assert genome["weight[a]"] == genome["weight[d]"] == 0.0
