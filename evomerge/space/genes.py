"""Genes spread over their axes: which dimensions a search has, and which value a gene takes at one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from evomerge.files.objects import Axis, GeneSpec
from evomerge.types import Dimension, Genome, Value

OTHER = "other"
"""The module of all tensors that no named filter matches."""


@dataclass(frozen=True)
class Axes:
    """The values of each axis: source names, layer groups [start, end), module names and their filters.

    With `interpolate`, the layer groups' numbers are knots at `knots` (layer positions), linear between them.
    """

    sources: tuple[str, ...]
    groups: tuple[tuple[int, int], ...]
    modules: Mapping[str, str]
    interpolate: bool = False
    knots: tuple[float, ...] = ()

    def names(self, axis: Axis) -> tuple[str, ...]:
        if axis == "sources":
            return self.sources
        if axis == "layers":
            return tuple(str(i) for i in range(len(self.groups)))
        return (*self.modules, OTHER)

    def group_of(self, layer: int) -> int:
        return next(i for i, (start, end) in enumerate(self.groups) if start <= layer < end)


def dimension_key(gene: str, places: Sequence[str]) -> str:
    return f"{gene}[{','.join(places)}]" if places else gene


def dimensions(genes: Sequence[GeneSpec], axes: Axes) -> tuple[Dimension, ...]:
    """One dimension for each gene and each combination of the values of its axes, in the file's order."""
    found = []
    for gene in genes:
        for places in product(*(axes.names(axis) for axis in gene.per)):
            key = dimension_key(gene.name, places)
            place: dict[str, str] = dict(zip(gene.per, places, strict=True))
            if gene.choices:
                init: Value = gene.init if gene.init is not None else gene.choices[0]
                found.append(Dimension(key, init=init, choices=gene.choices, gene=gene.name, place=place))
            else:
                start = gene.init if gene.init is not None else (gene.low + gene.high) / 2
                found.append(Dimension(key, gene.low, gene.high, start, gene.log, (), gene.name, place, gene.smooth))
    return tuple(found)


def value_at(gene: GeneSpec, genome: Genome, axes: Axes, source: str, layer: int, module: str) -> Value:
    """The gene's value for one source, layer and module. Choices do not interpolate."""

    def at(group: int) -> Value:
        place = {"sources": source, "layers": str(group), "modules": module}
        return genome[dimension_key(gene.name, [place[axis] for axis in gene.per])]

    if axes.interpolate and "layers" in gene.per and not gene.choices:
        return _between(axes.knots, [float(at(i)) for i in range(len(axes.groups))], layer)
    return at(axes.group_of(layer))


def _between(knots: Sequence[float], values: Sequence[float], position: float) -> float:
    """Linear interpolation, constant beyond the first and last knot."""
    for i in range(len(knots) - 1):
        if position <= knots[i + 1]:
            share = max(0.0, (position - knots[i]) / (knots[i + 1] - knots[i]))
            return (1 - share) * values[i] + share * values[i + 1]
    return values[-1]
