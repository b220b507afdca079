"""Looks up a parameter's value for one tensor: filters, layer gradients, precedence (mergekit `mergekit.config`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import Where
from evomerge.recipe.bands import Bands
from evomerge.recipe.recipe import Document, Input, Module, Parameters, Slice


def at_position(value: Any, t: float, kind: type = float) -> Any:
    """The value at relative depth `t` in [0, 1]: a list is a gradient, linear between its entries.

    x = t (n - 1); i = floor(x); (1 - frac) g[i] + frac g[i + 1]. Flags do not blend: entry floor(x) holds.
    """
    if not isinstance(value, list | tuple):
        return value
    x = t * (len(value) - 1)
    i = math.floor(x)
    if kind is bool or i == len(value) - 1:
        return value[i]
    fraction = x - i
    return (1 - fraction) * value[i] + fraction * value[i + 1]


def _is_filtered(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, dict) for v in value)
    )


def of_tensor(value: Any, tensor: str, t: float, kind: type = float) -> Any | None:
    """The value for `tensor` at depth `t`, or None where no filter of the entry matches it."""
    if not _is_filtered(value):
        return at_position(value, t, kind)
    entries = [value] if isinstance(value, dict) else value
    for entry in entries:
        pattern = entry.get("filter")
        if pattern is None or pattern == "*" or pattern in tensor:
            if "bands" in entry:
                sizes = entry.get("sizes")
                values = tuple(map(float, entry["bands"]))
                return Bands(values, None if sizes is None else tuple(sizes), entry.get("top"))
            return at_position(entry["value"], t, kind)
    return None


@dataclass(frozen=True)
class Levels:
    """Looks up the parameters of one slice. The first level with a value for the tensor wins: source, slice, module,
    document."""

    document: Document
    slice: Slice
    module: Module | None = None

    def of_source(self, source: Input, name: str, tensor: str, t: float, kind: type = float) -> Any | None:
        """A parameter of one model. `tensor` is the name that the tensor has in that model."""
        return self._first((source.parameters, *self._shared), name, tensor, t, kind)

    def of_tensor(self, name: str, tensor: str, t: float, kind: type = float) -> Any | None:
        """A parameter of the whole merge. `tensor` is the output's name."""
        return self._first(self._shared, name, tensor, t, kind)

    def filtered(self, sources: Iterable[Input]) -> bool:
        """Whether a parameter depends on the tensor's name, not only on its depth."""
        levels = (*self._shared, *(source.parameters for source in sources))
        return any(_is_filtered(value) for level in levels for value in level.values())

    def place(self, name: str, source: Input | None = None) -> Where:
        """The place of the parameter's first value; if it has none, the place where one is missing."""
        owners = [owner for owner in (source, self.slice, self.module, self.document) if owner is not None]
        for owner in owners:
            if name in owner.parameters:
                places: Mapping[str, Where] = getattr(owner.parameters, "places", {})
                return places.get(name, owner.where)
        return owners[0].where

    @property
    def _shared(self) -> tuple[Parameters, ...]:
        module = (self.module.parameters,) if self.module else ()
        return (self.slice.parameters, *module, self.document.parameters)

    @staticmethod
    def _first(levels: Sequence[Parameters], name: str, tensor: str, t: float, kind: type) -> Any | None:
        for level in levels:
            if name in level:
                value = of_tensor(level[name], tensor, t, kind)
                if value is not None:
                    return value
        return None
