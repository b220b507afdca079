"""Genes along their axes: the dimensions of a search, and the value of a gene at one place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from evomerge.errors import InputError
from evomerge.files.objects import Axis, GeneSpec
from evomerge.recipe.bands import sizes, top
from evomerge.types import Dimension, Genome, Value

MOST_DIMENSIONS = 100_000
"""Searched values. A weight and a density of each tensor of 80 layers and 10 sources are 14,000."""

OTHER = "other"
"""The module of all tensors that no named filter matches."""


@dataclass(frozen=True)
class Axes:
    """The values of each axis.

    Attributes:
        sources: the sources' names.
        groups: the layer groups [start, end).
        modules: the modules' names, with a filter each.
        interpolate: whether the layer groups' numbers are knots, linear between them.
        knots: the knots' positions, in layers.
        tensors: the tensors' names, with the layer whose values each takes (embeddings the first's, final norm and head
            the last's).
        shapes: the tensors' shapes.
    """

    sources: tuple[str, ...]
    groups: tuple[tuple[int, int], ...]
    modules: Mapping[str, str]
    interpolate: bool = False
    knots: tuple[float, ...] = ()
    tensors: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def names(self, axis: Axis) -> tuple[str, ...]:
        """The values of an axis; `bands` differ by tensor, and have none here (`bands_of`)."""
        if axis == "sources":
            return self.sources
        if axis == "layers":
            return tuple(str(i) for i in range(len(self.groups)))
        return tuple(self.tensors) if axis == "tensors" else (*self.modules, OTHER)

    def bands_of(self, gene: GeneSpec, tensor: str) -> tuple[int, ...]:
        """The sizes of the bands of a tensor, in directions; where there is a rest, it is the last one."""
        assert gene.bands is not None
        return sizes(gene.bands, self.shapes[tensor])

    def top_of(self, gene: GeneSpec, tensor: str) -> int | None:
        """The number of a tensor's directions that are cut beside a rest; None where all of them are."""
        assert gene.bands is not None
        return top(gene.bands, self.shapes[tensor])

    def module_of(self, tensor: str) -> str:
        """The first module whose filter is in the tensor's name."""
        return next((name for name, text in self.modules.items() if text in tensor), OTHER)

    def group_of(self, layer: int) -> int:
        return next(i for i, (start, end) in enumerate(self.groups) if start <= layer < end)


def takes_part(value: Value) -> bool:
    """Whether a source with this value of `include` is merged."""
    return float(value) >= 0.5


def dimension_key(gene: str, places: Sequence[str]) -> str:
    return f"{gene}[{','.join(places)}]" if places else gene


def dimensions(genes: Sequence[GeneSpec], axes: Axes) -> tuple[Dimension, ...]:
    """One dimension for each gene and each combination of the values of its axes, in the file's order. InputError where
    there are more than `MOST_DIMENSIONS`."""
    spread: list[Dimension] = []
    for gene in genes:
        count = len(spread) + _count(gene, axes)
        if count > MOST_DIMENSIONS:
            problem = f"{gene.name} brings the number of searched values to {count:,}, more than {MOST_DIMENSIONS:,}"
            mend = "fewer bands, or fewer axes (`per`)" if gene.bands is not None else "fewer axes (`per`)"
            raise InputError(problem, f"give it {mend}, or the space fewer layer groups", gene.where)
        for places in _places(gene, axes):
            key = dimension_key(gene.name, places)
            place: dict[str, str] = dict(zip(gene.per, places, strict=True))
            if gene.choices:
                init: Value = gene.init if gene.init is not None else gene.choices[0]
                spread.append(Dimension(key, init=init, choices=gene.choices, gene=gene.name, place=place))
            else:
                start = gene.init if gene.init is not None else (gene.low + gene.high) / 2
                spread.append(Dimension(key, gene.low, gene.high, start, gene.log, (), gene.name, place))
    return tuple(spread)


def _count(gene: GeneSpec, axes: Axes) -> int:
    """The number of dimensions that a gene has."""
    count = math.prod(len(axes.names(axis)) for axis in gene.per if axis not in ("tensors", "bands"))
    if "bands" in gene.per:
        return count * sum(len(axes.bands_of(gene, tensor)) for tensor in axes.tensors)
    return count * (len(axes.tensors) if "tensors" in gene.per else 1)


def _places(gene: GeneSpec, axes: Axes) -> Iterator[tuple[str, ...]]:
    """The values of the gene's axes, in all combinations."""
    for places in product(*(axes.names(axis) for axis in gene.per if axis != "bands")):
        if "bands" in gene.per:  # the last axis, behind the tensor
            yield from ((*places, str(band)) for band in range(len(axes.bands_of(gene, places[-1]))))
        else:
            yield places


def value_at(
    gene: GeneSpec, genome: Genome, axes: Axes, source: str, layer: int, module: str, tensor: str = "", band: int = 0
) -> Value:
    """The gene's value for one source, layer and module, or one tensor of the layer (and band of it). Choices are not
    interpolated."""
    parts = shares_at(gene, axes, source, layer, module, tensor, band)
    if len(parts) == 1:
        return genome[parts[0][0]]
    (first, a), (second, b) = parts
    return a * float(genome[first]) + b * float(genome[second])


def shares_at(
    gene: GeneSpec, axes: Axes, source: str, layer: int, module: str, tensor: str = "", band: int = 0
) -> tuple[tuple[str, float], ...]:
    """The dimensions that the gene takes its value from at a place, and the share of each: one dimension, or the two
    knots beside the layer."""

    def key(group: int) -> str:
        place = {"sources": source, "layers": str(group), "modules": module, "tensors": tensor, "bands": str(band)}
        return dimension_key(gene.name, [place[axis] for axis in gene.per])

    if axes.interpolate and "layers" in gene.per and not gene.choices:
        return tuple((key(group), share) for group, share in _between(axes.knots, layer))
    return ((key(axes.group_of(layer)), 1.0),)


def _between(knots: Sequence[float], position: float) -> list[tuple[int, float]]:
    """The knots beside a position, and their shares in its value; constant beyond the first and the last."""
    for i in range(len(knots) - 1):
        if position <= knots[i + 1]:
            share = max(0.0, (position - knots[i]) / (knots[i + 1] - knots[i]))
            return [(i, 1 - share), (i + 1, share)]
    return [(len(knots) - 1, 1.0)]
