"""Down the gradient first, then a search without one around what it found.

A few dozen steps settle many genes. What is left is for the real metrics and floors, which surrogates only stand in
for: the genes that matter move on in bundles, few enough for a search that knows no slopes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evomerge.optimize.base import Optimizer, Sequential, Start
from evomerge.optimize.gradient import Gradient
from evomerge.optimize.ordering import rank_key
from evomerge.space.vector import Encoding, Vector
from evomerge.types import Dimension, Genome, Outcome, Value

_STEPS = 40

_SHARE = 0.95
"""Genes matter that together make up so much of what the slopes and curvatures of all of them promise."""

REACH = 0.1
"""How far a shift goes either way, as a share of each gene's range."""

_MOST = 24
"""Shifts that a search without gradients can still handle; with more, the layers of a source move together, too."""

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")

Make = Callable[[Sequence[Dimension], Start], Optimizer]


class GradientStart(Sequential):
    """Proposes what `Gradient` does until that ends, then what another optimizer does in the space of `Bundles`."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, make: Make, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        self._make = make
        self._gradient = Gradient(dimensions, seed, steps=_STEPS, start=self.start, asynchronous=self.asynchronous)
        self._bundles: Bundles | None = None
        self._inner: Optimizer | None = None
        self._shifts: list[Genome] = []

    @property
    def _now(self) -> Optimizer:
        return self._inner or self._gradient

    def _room(self) -> int:
        return self._now.open

    @property
    def exhausted(self) -> str | None:
        return self._now.exhausted

    @property
    def rivals(self) -> int:
        return self._now.rivals

    @property
    def places(self) -> int:
        return self._now.places

    @property
    def slopes(self) -> bool:
        return self._inner is None

    @property
    def why(self) -> str:
        return self._inner.why if self._inner is not None else f"gradient step {self._gradient.count}"

    def _recall(self, genome: Genome) -> None:
        if self._inner is not None:
            super()._recall(genome)
            return
        self._gradient.recall(genome)
        self._asked.append(dict(genome))

    def _propose(self) -> Genome:
        if self._inner is None or self._bundles is None:
            return self._gradient.ask()
        self._shifts.append(self._inner.ask())
        return self._bundles.whole(self._shifts[-1])

    def _learn(self, outcome: Outcome) -> None:
        if self._inner is not None:
            self._inner.tell(self._shifts.pop(0), outcome)
            return
        self._gradient.tell(self.history[-1][0], outcome)
        if self._gradient.exhausted is not None:
            self._go_on()

    def _go_on(self) -> None:
        """From the gradient to the search around the best that it met."""
        center, outcome = min([*self.start.known, *self.history], key=lambda pair: rank_key(pair[1]))
        self._bundles = Bundles(self.dimensions, center, _matter(self._gradient.promise(REACH)))
        known = ((self._bundles.start, outcome),)
        self._inner = self._make(self._bundles.dimensions, Start(self._bundles.start, {}, known))


def _matter(promise: Sequence[float]) -> list[bool]:
    """The fewest genes that hold `_SHARE` of all promises; those of which nothing is known (NaN) are among them."""
    values = np.array(promise)
    order = np.argsort(-np.nan_to_num(values), kind="stable")
    held = np.cumsum(np.nan_to_num(values)[order])
    found = np.isnan(values)
    if held.size and held[-1] > 0:
        found[order[: int(np.searchsorted(held, _SHARE * held[-1])) + 1]] = True
    return [bool(x) for x in found]


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
