"""Genes that move together: a space of few shifts around one genome of many genes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from evomerge.space.vector import Encoding, Vector
from evomerge.types import Dimension, Genome, Value

REACH = 0.1
"""How far a shift goes either way, as a share of each gene's range."""

_MOST = 24
"""Shifts that a search without gradients can still handle; with more, the layers of a source move together, too."""

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


class Bundles:
    """A genome of `dimensions` (choices, and a shift for each group of tied genes) stands for one of the whole space.

    Tied are the values of one gene and source in one layer; of those only the ones that `matter` are shifted, and a
    group where none does is left out.
    """

    def __init__(self, dimensions: Sequence[Dimension], center: Genome, matter: Sequence[bool]) -> None:
        """`matter`: of each dimension, in order."""
        self._encoding = Encoding(dimensions)
        self._center = self._encoding.encode(center)
        self._choices = [d for d in dimensions if len(d.choices) > 1]
        moving = [d for d, own in zip(dimensions, matter, strict=True) if own and not d.choices and d.low < d.high]
        coordinates = {d.key: place.start for d, place in zip(dimensions, self._encoding.places, strict=True)}
        self._groups: dict[str, list[int]] = {}
        for labels in (_by_layer, _by_source):
            self._groups = {}
            for d in moving:
                self._groups.setdefault(labels(d), []).append(coordinates[d.key])
            if len(self._groups) <= _MOST:
                break
        shifts = [Dimension(key, -REACH, REACH, 0.0, gene=key.partition(" ")[0]) for key in self._groups]
        self.dimensions: tuple[Dimension, ...] = (*shifts, *self._choices)
        chosen: dict[str, Value] = {d.key: center[d.key] for d in self._choices}
        self.start: Genome = {**dict.fromkeys(self._groups, 0.0), **chosen}

    def whole(self, genome: Genome) -> Genome:
        """The genome of the whole space."""
        vector: Vector = self._center.copy()
        for key, coordinates in self._groups.items():
            vector[coordinates] += float(genome[key])
        found = self._encoding.decode(np.clip(vector, 0.0, 1.0))
        return {**found, **{d.key: genome[d.key] for d in self._choices}}


def _by_layer(dimension: Dimension) -> str:
    """``weight of shipping, layer 3``."""
    place = where(dimension)
    return f"{_by_source(dimension)}{', ' if place else ''}{place}"


def _by_source(dimension: Dimension) -> str:
    source = dimension.place.get("sources")
    return f"{dimension.gene or dimension.key}{f' of {source}' if source else ''}"


def where(dimension: Dimension) -> str:
    """The layer or layer group of a dimension, in words; empty where it has none."""
    if "layers" in dimension.place:
        return f"layers {dimension.place['layers']}"
    tensor = dimension.place.get("tensors")
    if tensor is None:
        return ""
    found = _LAYER.search(tensor)
    return f"layer {found[1]}" if found else "outside of the layers"
