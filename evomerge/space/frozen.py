"""What a space file freezes: the values of genes that are not searched, and where layer groups are cut for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evomerge.errors import InputError
from evomerge.files.objects import SpaceSpec
from evomerge.registry import NEUTRAL
from evomerge.space.genes import Axes
from evomerge.types import Dimension, Genome

Span = tuple[int, int]


def frozen_layers(spec: SpaceSpec, layers: int) -> frozenset[int]:
    """The numbers of the layers that stay the base's. InputError where the base has fewer layers."""
    for _, end in spec.freeze.layers:
        if end > layers:
            problem = f"freezes layer {end - 1}, and the base has layers 0 to {layers - 1}"
            raise InputError(problem, "give ranges [start, end) within it", spec.at("freeze.layers"))
    return frozenset(layer for start, end in spec.freeze.layers for layer in range(start, end))


def cut(groups: Iterable[Span], frozen: frozenset[int]) -> tuple[Span, ...]:
    """The layer groups, cut where frozen layers begin or end."""
    spans: list[Span] = []
    for start, end in groups:
        borders = [i for i in range(start + 1, end) if (i in frozen) != (i - 1 in frozen)]
        spans += zip([start, *borders], [*borders, end], strict=True)
    return tuple(spans)


def frozen_values(dimensions: Sequence[Dimension], spec: SpaceSpec, axes: Axes, frozen: frozenset[int]) -> Genome:
    """The values of the genes that are not searched: the ones of frozen sources, of layer groups that are `frozen`
    whole, and of tensors in frozen layers or of frozen modules."""
    values: Genome = {}
    for d in dimensions:
        source, group, tensor = (d.place.get(axis) for axis in ("sources", "layers", "tensors"))
        if source in spec.freeze.sources:
            weight = spec.freeze.sources[source]
            values[d.key] = weight if d.gene == "weight" and weight is not None else d.tidy(d.init)
        group_frozen = group is not None and all(layer in frozen for layer in range(*axes.groups[int(group)]))
        if group_frozen or (tensor is not None and axes.tensors[tensor] in frozen):
            values[d.key] = 0.0 if d.gene in ("weight", "t") else d.tidy(d.init)
        module = axes.module_of(tensor) if tensor is not None else d.place.get("modules")
        if module in spec.freeze.modules:
            kept = kept_value(d.gene, source, spec.freeze.modules[module])
            values[d.key] = d.tidy(d.init) if kept is None else kept
    return values


def kept_value(gene: str, source: str | None, kept: str | None) -> float | None:
    """The value of a gene for one source at which a merge is the source `kept`, or (None) the base; None where any
    value does."""
    if gene == "weight":
        return float(kept is not None and source == kept)
    if gene == "t":
        return float(kept is not None)
    return None if kept is None else NEUTRAL.get(gene)
