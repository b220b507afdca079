"""The settings of a recipe by layer, module and source, as a table of numbers for each parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evomerge.recipe.recipe import Document, Input, Recipe
from evomerge.report.page.places import Places

MOST_CELLS = 3000
"""Of all parameters together; of more the modules are averaged."""

_LAYER = re.compile(r"^.*?\.\d+\.")
_REST = "other"

Span = tuple[int, int] | None
"""Layers [start, end); None: all of them."""
Key = tuple[Span, str, str]
"""Layers, source ("": the whole merge), module ("": all of it)."""


def weights_data(recipe: Recipe, places: Places) -> dict[str, Any]:
    """Returns the recipe's methods by layers, and a grid of numbers for each parameter."""
    found: dict[str, dict[Key, list[float]]] = {}
    methods: dict[Span, str] = {}
    for document, span, inputs, shared in _slices(recipe):
        methods[span] = document.method
        for source, parameters in [*((places.name(i.model), i.parameters) for i in inputs), ("", shared)]:
            for name, value in parameters.items():
                for module, number in _values(value):
                    found.setdefault(name, {}).setdefault((span, source, module), []).append(number)
    most = MOST_CELLS // max(1, len(found))
    grids = {name: _grid({key: sum(v) / len(v) for key, v in cells.items()}, most) for name, cells in found.items()}
    return {
        "methods": [{"layers": _layers(span), "method": method} for span, method in methods.items()],
        "parameters": grids,
    }


def _slices(recipe: Recipe) -> Iterator[tuple[Document, Span, Sequence[Input], Mapping[str, Any]]]:
    """Each run of layers with the document that merges it: layers that a last document takes from a stage have the
    stage's settings."""
    stages = {d.name: d for d in recipe.documents if d.name}
    for slice_ in recipe.output.all_slices:
        stage = stages.get(slice_.inputs[0].model) if len(slice_.inputs) == 1 else None
        if stage is None:
            span = next((i.layers for i in slice_.inputs if i.layers), None)
            yield recipe.output, span, slice_.inputs, _shared(recipe.output, slice_.parameters)
            continue
        wanted = slice_.inputs[0].layers
        for part in stage.all_slices:
            span = _common(wanted, next((i.layers for i in part.inputs if i.layers), None))
            if span is None or span[0] < span[1]:
                yield stage, span, part.inputs, _shared(stage, part.parameters)


def _shared(document: Document, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {**document.parameters, **parameters}


def _common(first: Span, second: Span) -> Span:
    if first is None or second is None:
        return first or second
    return max(first[0], second[0]), min(first[1], second[1])


def _values(value: Any) -> Iterator[tuple[str, float]]:
    """(module, number) of a parameter; the mean over bands and along a gradient."""
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float):
        yield "", float(value)
    elif isinstance(value, list | tuple) and value and all(isinstance(v, Mapping) for v in value):
        for entry in value:
            numbers = entry["bands"] if "bands" in entry else entry.get("value")
            yield from ((_module(entry.get("filter")), number) for _, number in _values(numbers))
    elif isinstance(value, list | tuple) and value and all(isinstance(v, int | float) for v in value):
        yield "", sum(map(float, value)) / len(value)


def _module(pattern: str | None) -> str:
    """A tensor's name without its layer, so that the same one of all layers is a column."""
    return _REST if pattern in (None, "*") else _LAYER.sub("", str(pattern))


def _grid(cells: Mapping[Key, float], most: int) -> dict[str, Any]:
    """Rows of layers, columns of sources and modules."""
    averaged = False
    if len({key[0] for key in cells}) * len({key[1:] for key in cells}) > most:
        sums: dict[Key, list[float]] = {}
        for (span, source, _), number in cells.items():
            sums.setdefault((span, source, ""), []).append(number)
        cells, averaged = {key: sum(v) / len(v) for key, v in sums.items()}, True
    rows = sorted({span for span, _, _ in cells}, key=lambda span: span or (-1, -1))
    columns = list(dict.fromkeys((source, module) for _, source, module in cells))
    whole = {column: cells[None, *column] for column in columns if (None, *column) in cells}
    values = [[cells.get((row, *column), whole.get(column)) for column in columns] for row in rows]
    return {
        "layers": [_layers(row) for row in rows],
        "columns": [{"source": source or None, "module": module or None} for source, module in columns],
        "values": values,
        "mean_over_modules": averaged,
    }


def _layers(span: Span) -> str:
    if span is None:
        return "all layers"
    return f"layer {span[0]}" if span[1] - span[0] == 1 else f"layers {span[0]} to {span[1] - 1}"
