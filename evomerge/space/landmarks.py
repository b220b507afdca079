"""Genomes that stand for models which everybody would try first: the parents, their average, equal weights.

Not every space holds them: a weight whose range does not reach 0 has no genome for the base, and weights that are
normalised none for anything between the base and the average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evomerge.registry import CHOICES, METHODS
from evomerge.types import Dimension, Genome, Value

UNIFORM = "uniform"

LADDER = (0.2, 0.4, 0.6, 0.8)
"""The equal weights (or, where there is one source and a path to it, the places on the path)."""

_PLAIN = ("task_arithmetic", "dare_linear", "linear", "ties", "dare_ties", "slerp")
"""Methods that give the parents back at the ends of their ranges, the plainest first."""

_AVERAGING = ("task_arithmetic", "dare_linear", "linear")
"""Those that give the average of the sources, too."""

_NEUTRAL: Mapping[str, float] = {"density": 1.0, "lambda": 1.0}
"""The values at which a parameter of these methods changes nothing."""


def landmarks(
    dimensions: Sequence[Dimension],
    sources: Sequence[str],
    methods: Sequence[str],
    fixed: Mapping[str, float | bool],
) -> dict[str, Genome]:
    """Label -> genome, of those that the space holds: "base", each source by its name, "uniform" (whose models are the
    study's references, but for the last bit), and "equal 0.2", ..., where every source has the same weight."""
    method = next((m for m in _PLAIN if m in methods), None)
    gene = "t" if method == "slerp" else "weight"
    if method is None or gene not in {d.gene for d in dimensions}:
        return {}
    averages = method == "linear" or _is_normalised(method, fixed)
    whole = _is_neutral(dimensions, method, fixed)
    wanted: dict[str, dict[str, float]] = {}
    if not averages:
        wanted["base"] = dict.fromkeys(sources, 0.0)
    if whole:
        wanted.update({source: {s: float(s == source) for s in sources} for source in sources})
    if whole and method in _AVERAGING:
        wanted[UNIFORM] = dict.fromkeys(sources, 1.0 if averages else 1.0 / len(sources))
    if not averages:
        wanted.update({f"equal {step:g}": dict.fromkeys(sources, step) for step in LADDER})
    found = {label: _genome(dimensions, method, gene, weights) for label, weights in wanted.items()}
    return {label: genome for label, genome in found.items() if genome is not None}


def sources_of(found: Mapping[str, Genome]) -> dict[str, Genome]:
    """Those of the landmarks that are sources."""
    others = ("base", UNIFORM, *(f"equal {step:g}" for step in LADDER))
    return {label: genome for label, genome in found.items() if label not in others}


def _is_normalised(method: str, fixed: Mapping[str, float | bool]) -> bool:
    parameter = METHODS[method].parameter("normalize")
    return bool(fixed.get("normalize", parameter.default if parameter else False))


def _is_neutral(dimensions: Sequence[Dimension], method: str, fixed: Mapping[str, float | bool]) -> bool:
    """Whether the space reaches values at which all but the weights changes nothing."""
    names = {p.name for p in CHOICES[method].parameters}
    held = all(fixed.get(name, value) == value for name, value in _NEUTRAL.items() if name in names)
    return held and all(d.low <= _NEUTRAL[d.gene] <= d.high for d in dimensions if d.gene in _NEUTRAL)


def _genome(dimensions: Sequence[Dimension], method: str, gene: str, weights: Mapping[str, float]) -> Genome | None:
    """The genome with these weights; None where a range does not reach one of them."""
    genome: Genome = {}
    for dimension in dimensions:
        value: Value = _NEUTRAL.get(dimension.gene, dimension.init)
        if dimension.gene == "method" and method in dimension.choices:
            value = method
        if dimension.gene == gene:
            own = dimension.place.get("sources")
            if own is None and len(set(weights.values())) > 1:
                return None
            value = weights[own or next(iter(weights))]
            if not dimension.low <= value <= dimension.high:
                return None
        genome[dimension.key] = dimension.tidy(value)
    return genome
