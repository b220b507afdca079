"""Genomes that stand for well-known models: which of them a space holds."""

from __future__ import annotations

from typing import Any

import pytest

from evomerge.registry import METHODS
from evomerge.space.reference_genomes import ReferenceGenome, ReferenceKind, reference_genomes, sources_of
from evomerge.types import Dimension

SOURCES = ("a", "b")


def weights(low: float = 0.0, high: float = 1.0) -> list[Dimension]:
    return [Dimension(f"weight[{s}]", low, high, 0.5, gene="weight", place={"sources": s}) for s in SOURCES]


def pairs(found: dict[str, ReferenceGenome]) -> dict[str, tuple[Any, ...]]:
    return {label: tuple(reference.genome.values()) for label, reference in found.items()}


def test_weights_of_deltas_reach_every_parent() -> None:
    found = pairs(reference_genomes(weights(), SOURCES, ("task_arithmetic",), {}))
    assert found["base"] == (0.0, 0.0)
    assert found["a"] == (1.0, 0.0)
    assert found["b"] == (0.0, 1.0)
    assert found["uniform"] == (0.5, 0.5)
    assert [found[f"equal {step}"] for step in (0.2, 0.4, 0.6, 0.8)] == [(s, s) for s in (0.2, 0.4, 0.6, 0.8)]


def test_what_a_range_does_not_reach_is_left_out() -> None:
    narrow = reference_genomes(weights(0.3, 0.7), SOURCES, ("task_arithmetic",), {})
    assert set(narrow) == {"uniform", "equal 0.4", "equal 0.6"}
    shared = [Dimension("weight", 0.0, 1.0, 0.5, gene="weight")]
    assert "a" not in reference_genomes(shared, SOURCES, ("task_arithmetic",), {})
    assert reference_genomes(shared, SOURCES, ("karcher",), {}) == {}


def test_averages_hold_no_base_and_no_ladder() -> None:
    assert set(reference_genomes(weights(), SOURCES, ("linear",), {})) == {"a", "b", "uniform"}
    assert set(reference_genomes(weights(), SOURCES, ("ties",), {"normalize": True})) == {"a", "b"}


def test_other_genes_take_the_values_that_change_nothing() -> None:
    density = Dimension("density", 0.1, 1.0, 0.4, gene="density")
    found = reference_genomes([*weights(), density], SOURCES, ("dare_linear",), {})
    assert {reference.genome["density"] for reference in found.values()} == {1.0}
    # where that is out of reach, a source cannot be had, the base can
    trimmed = reference_genomes(
        [*weights(), Dimension("density", 0.1, 0.9, 0.4, gene="density")], SOURCES, ("dare_linear",), {}
    )
    assert "a" not in trimmed
    assert "base" in trimmed
    assert "a" not in reference_genomes(weights(), SOURCES, ("dare_linear",), {"density": 0.5})


def test_the_plainest_method_is_taken() -> None:
    method = Dimension("method", choices=("ties", "task_arithmetic"), init="ties", gene="method")
    found = reference_genomes([method, *weights()], SOURCES, ("ties", "task_arithmetic"), {"normalize": False})
    assert {reference.genome["method"] for reference in found.values()} == {"task_arithmetic"}


def test_paths_have_places() -> None:
    t = [Dimension("t", 0.0, 1.0, 0.5, gene="t")]
    found = pairs(reference_genomes(t, ("a",), ("slerp",), {}))
    assert found == {"base": (0.0,), "a": (1.0,), **{f"equal {s}": (s,) for s in (0.2, 0.4, 0.6, 0.8)}}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_survived(method: str) -> None:
    for reference in reference_genomes(weights(), SOURCES, (method,), {}).values():
        assert set(reference.genome) == {"weight[a]", "weight[b]"}


def test_kinds_are_not_read_from_labels() -> None:
    sources = ("equal-mix", "equal_0.2", "sources")
    dimensions = [Dimension(f"weight[{s}]", gene="weight", place={"sources": s}) for s in sources]
    references = reference_genomes(dimensions, sources, ("task_arithmetic",), {})
    assert list(sources_of(references)) == list(sources)
    kinds = [reference.kind for reference in references.values()]
    assert kinds == [
        ReferenceKind.BASE,
        *[ReferenceKind.SOURCE] * 3,
        ReferenceKind.UNIFORM,
        *[ReferenceKind.EQUAL_WEIGHTS] * 4,
    ]
