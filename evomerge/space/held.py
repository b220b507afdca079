"""What a space file freezes: genes that are no dimensions, and where the layers are cut for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evomerge.errors import InputError
from evomerge.files.objects import SpaceSpec
from evomerge.space.genes import Axes
from evomerge.types import Dimension, Genome

Span = tuple[int, int]


def frozen_layers(spec: SpaceSpec, layers: int) -> frozenset[int]:
    """The layers that stay the base's. InputError where the base has none of that number."""
    for _, end in spec.freeze.layers:
        if end > layers:
            problem = f"freezes layer {end - 1}, and the base has layers 0 to {layers - 1}"
            raise InputError(problem, "give ranges [start, end) within it", spec.at("freeze.layers"))
    return frozenset(layer for start, end in spec.freeze.layers for layer in range(start, end))


def cut(groups: Iterable[Span], frozen: frozenset[int]) -> tuple[Span, ...]:
    """The layer groups, cut where frozen layers begin or end."""
    found: list[Span] = []
    for start, end in groups:
        borders = [i for i in range(start + 1, end) if (i in frozen) != (i - 1 in frozen)]
        found += zip([start, *borders], [*borders, end], strict=True)
    return tuple(found)


def held_values(dimensions: Sequence[Dimension], spec: SpaceSpec, axes: Axes, frozen: frozenset[int]) -> Genome:
    """The values of the genes that are not searched: those of frozen sources, of groups that are frozen whole, and of
    tensors in frozen layers."""
    held: Genome = {}
    for d in dimensions:
        group, tensor = d.place.get("layers"), d.place.get("tensors")
        still = group is not None and all(layer in frozen for layer in range(*axes.groups[int(group)]))
        still = still or (tensor is not None and axes.tensors[tensor] in frozen)
        source = d.place.get("sources")
        if source in spec.freeze.sources:
            given = spec.freeze.sources[source]
            held[d.key] = given if d.gene == "weight" and given is not None else d.tidy(d.init)
        if still:
            held[d.key] = 0.0 if d.gene in ("weight", "t") else d.tidy(d.init)
    return held
