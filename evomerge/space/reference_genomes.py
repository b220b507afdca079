"""Reference genomes: the genomes of models that everybody would try first, which are the parents, their average, and
equal weights.

Not every space holds them. A weight whose range does not reach 0 has no genome for the base. Weights that are
normalised have none for anything between the base and the average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from evomerge.files.objects import EXPONENT, INCLUDE, WINDOW
from evomerge.registry import CHOICES, METHODS, NEUTRAL, PLAIN
from evomerge.types import Dimension, Genome, Value

BASE, UNIFORM = "base", "uniform"
"""Labels that no source can have."""

SOUP = "greedy soup"
"""The label of what a greedy soup mixes."""

EQUAL_WEIGHTS = (0.2, 0.4, 0.6, 0.8)
"""The ladder of equal weights (where there is one source and a path to it, of places on the path)."""

_AVERAGING = ("task_arithmetic", "isotropy", "rank", "dare_linear", "linear")
"""The ones among them that give the average of the sources, too."""


class ReferenceKind(StrEnum):
    """Which model a reference genome stands for."""

    BASE = "base"
    SOURCE = "source"
    UNIFORM = "uniform average"
    EQUAL_WEIGHTS = "equal weights"
    SUBSET = "subset"


@dataclass(frozen=True)
class ReferenceGenome:
    """A genome that stands for a well-known model. The models of all kinds but EQUAL_WEIGHTS and SUBSET are a study's
    references (the average's but for the last bit)."""

    genome: Genome
    kind: ReferenceKind


def reference_genomes(
    dimensions: Sequence[Dimension],
    sources: Sequence[str],
    methods: Sequence[str],
    fixed: Mapping[str, float | bool],
) -> dict[str, ReferenceGenome]:
    """The reference genomes that the space holds, by label: "base", each source's name, "uniform", and "equal 0.2" and
    so on, where every source has the same weight."""
    method = next((m for m in PLAIN if m in methods), None)
    gene = "t" if method == "slerp" else "weight"
    if method is None or gene not in {d.gene for d in dimensions}:
        return {}
    averages = method == "linear" or _is_normalised(method, fixed)
    whole = _is_neutral(dimensions, method, fixed)
    wanted: dict[str, tuple[ReferenceKind, dict[str, float]]] = {}
    if not averages:
        wanted[BASE] = ReferenceKind.BASE, dict.fromkeys(sources, 0.0)
    if whole:
        for source in sources:
            wanted[source] = ReferenceKind.SOURCE, {s: float(s == source) for s in sources}
    if whole and method in _AVERAGING:
        wanted[UNIFORM] = ReferenceKind.UNIFORM, dict.fromkeys(sources, 1.0 if averages else 1.0 / len(sources))
    if not averages:
        for weight, label in zip(EQUAL_WEIGHTS, equal_labels(), strict=True):
            wanted[label] = ReferenceKind.EQUAL_WEIGHTS, dict.fromkeys(sources, weight)
    references = {}
    for label, (kind, weights) in wanted.items():
        genome = _genome(dimensions, method, gene, weights, kind)
        if genome is not None:
            references[label] = ReferenceGenome(genome, kind)
    return references


def subset_genome(
    dimensions: Sequence[Dimension], methods: Sequence[str], fixed: Mapping[str, float | bool], members: Sequence[str]
) -> Genome:
    """The genome of the plain average of some sources, as near as the ranges come to it."""
    method = next((m for m in PLAIN if m in methods), None)
    averages = method is not None and (method == "linear" or _is_normalised(method, fixed))
    weight = 1.0 if averages else 1.0 / len(members)
    genome: Genome = {}
    for dimension in dimensions:
        member = dimension.place.get("sources") in (None, *members)
        value: Value = NEUTRAL.get(dimension.gene, dimension.init)
        if dimension.gene == "method" and method in dimension.choices:
            value = method
        if dimension.gene == "weight":
            value = weight if member else 0.0
        if dimension.gene == INCLUDE:
            value = float(member)
        genome[dimension.key] = dimension.tidy(value)
    return genome


def equal_labels() -> list[str]:
    """The labels of the ladder of equal weights."""
    return [f"equal {weight:g}" for weight in EQUAL_WEIGHTS]


def sources_of(references: Mapping[str, ReferenceGenome]) -> dict[str, Genome]:
    """The genomes of the sources."""
    return {label: r.genome for label, r in references.items() if r.kind is ReferenceKind.SOURCE}


def _is_normalised(method: str, fixed: Mapping[str, float | bool]) -> bool:
    parameter = METHODS[method].parameter("normalize")
    return bool(fixed.get("normalize", parameter.default if parameter else False))


def _is_neutral(dimensions: Sequence[Dimension], method: str, fixed: Mapping[str, float | bool]) -> bool:
    """Whether the space reaches values at which all but the weights changes nothing."""
    names = {p.name for p in CHOICES[method].parameters}
    neutral = all(fixed.get(name, value) == value for name, value in NEUTRAL.items() if name in names)
    return neutral and all(d.low <= NEUTRAL[d.gene] <= d.high for d in dimensions if d.gene in NEUTRAL)


def _genome(
    dimensions: Sequence[Dimension], method: str, gene: str, weights: Mapping[str, float], kind: ReferenceKind
) -> Genome | None:
    """The genome with these weights; None where a range does not reach one of them. A trajectory's source is its newest
    checkpoint, and its average that of all."""
    curves = {ReferenceKind.SOURCE: {WINDOW: 1.0}, ReferenceKind.UNIFORM: {EXPONENT: 1.0}}.get(kind, {})
    genome: Genome = {}
    for dimension in dimensions:
        value: Value = NEUTRAL.get(dimension.gene, dimension.init)
        if dimension.gene == "method" and method in dimension.choices:
            value = method
        if dimension.gene == gene:
            source = dimension.place.get("sources")
            if source is None and len(set(weights.values())) > 1:
                return None
            value = weights[source or next(iter(weights))]
            if not dimension.low <= value <= dimension.high:
                return None
        if dimension.gene == INCLUDE:
            value = float(weights[dimension.place["sources"]] != 0)
        if dimension.gene == WINDOW and kind is ReferenceKind.UNIFORM:
            value = dimension.high
        if dimension.gene in curves:
            value = curves[dimension.gene]
            if not dimension.low <= value <= dimension.high:
                return None
        genome[dimension.key] = dimension.tidy(value)
    return genome
