"""Which value a parameter has for one tensor: filters, layer gradients, precedence (mergekit `mergekit.config`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from evomerge.recipe.recipe import Document, Input, Parameters, Slice


def at_position(value: Any, t: float) -> Any:
    """The value at relative depth `t` in [0, 1]: a list of numbers is a gradient, linear between its entries.

    x = t (n - 1); i = floor(x); (1 - frac) g[i] + frac g[i + 1].
    """
    if not isinstance(value, list | tuple):
        return value
    x = t * (len(value) - 1)
    i = min(math.floor(x), len(value) - 2) if len(value) > 1 else 0
    if len(value) == 1:
        return value[0]
    fraction = x - i
    return (1 - fraction) * value[i] + fraction * value[i + 1]


def _is_filtered(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, dict) for v in value)
    )


def of_tensor(value: Any, tensor: str, t: float) -> Any | None:
    """The value for `tensor` at depth `t`, or None where no filter of the entry matches it."""
    if not _is_filtered(value):
        return at_position(value, t)
    entries = [value] if isinstance(value, dict) else value
    for entry in entries:
        pattern = entry.get("filter")
        if pattern is None or pattern == "*" or pattern in tensor:
            return at_position(entry["value"], t)
    return None


def _first(levels: Sequence[Parameters], name: str, tensor: str, t: float) -> Any | None:
    for level in levels:
        if name in level:
            found = of_tensor(level[name], tensor, t)
            if found is not None:
                return found
    return None


def source_value(document: Document, piece: Slice, source: Input, name: str, tensor: str, t: float) -> Any | None:
    """A per-model parameter: the model's own value wins over the slice's, the slice's over the document's.
    `tensor` is the input tensor's name."""
    return _first((source.parameters, piece.parameters, document.parameters), name, tensor, t)


def tensor_value(document: Document, piece: Slice, name: str, tensor: str, t: float) -> Any | None:
    """A parameter of the whole tensor: the slice's value wins over the document's. `tensor` is the output's name."""
    return _first((piece.parameters, document.parameters), name, tensor, t)
