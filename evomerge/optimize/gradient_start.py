"""Steps along the gradient first, then a search without gradients around the best of them.

A few dozen steps settle many genes. What is left is for the real metrics and floors, which proxy losses only stand in
for: the important genes move on in bundles, few enough for a search that knows no gradients.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.optimize.base import Generation, Optimizer, Proposal, Sequential, Start
from evomerge.optimize.gradient import Gradient
from evomerge.optimize.ordering import rank_key
from evomerge.optimize.phased import Phased
from evomerge.space.vector import Encoding, Vector
from evomerge.types import Dimension, Genome, Outcome, Value

_STEPS = 40

_SHARE = 0.95
"""The important genes are the fewest with so much of the expected change of all genes together."""

REACH = 0.1
"""How far a shift goes either way, as a share of each gene's range."""

_MOST = 24
"""The most shifts that a search without gradients can handle; with more, the layers of a source move together, too."""

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")

Make = Callable[[Sequence[Dimension], Start], Optimizer]


class GradientStart(Phased):
    """Proposes the steps of `Gradient` until they end, then the genomes of another optimizer in the space of
    `Bundles`."""

    def __init__(
        self, dimensions: Sequence[Dimension], seed: int, make: Make, *, start: Start, asynchronous: bool = False
    ) -> None:
        """`make`: builds the other optimizer in a space."""
        self._dimensions, self._seed, self._make = dimensions, seed, make
        self._asynchronous = asynchronous
        super().__init__(start)

    def _phases(self) -> Iterator[Optimizer]:
        common: dict[str, Any] = {"start": self.start, "asynchronous": self._asynchronous}
        gradient = _Steps(self._dimensions, self._seed, steps=_STEPS, **common)
        yield gradient
        center, outcome = min(self._known, key=lambda pair: rank_key(pair[1]))
        bundles = Bundles(self._dimensions, center, _important(gradient.expected_change(REACH)))
        inner = self._make(bundles.dimensions, Start(bundles.start, {}, ((bundles.start, outcome),)))
        yield InBundles(self._dimensions, self._seed, bundles, inner, **common)


class _Steps(Gradient):
    """Says the number of each step."""

    def _proposal(self, genome: Genome) -> Proposal:
        return replace(super()._proposal(genome), label=f"gradient step {self.count}")


class InBundles(Sequential):
    """An optimizer in the space of `Bundles`, seen in the whole space."""

    def __init__(
        self, dimensions: Sequence[Dimension], seed: int, bundles: Bundles, inner: Optimizer, **common: Any
    ) -> None:
        super().__init__(dimensions, seed, **common)
        self.bundles, self._inner = bundles, inner
        self._in_flight: list[Proposal] = []

    @property
    def exhausted(self) -> str | None:
        return self._inner.exhausted

    @property
    def generation(self) -> Generation:
        return self._inner.generation

    def _askable(self) -> int:
        return self._inner.generation.askable

    def _propose(self) -> Genome:
        self._in_flight.append(self._inner.ask())
        return self.bundles.whole(self._in_flight[-1].genome)

    def _proposal(self, genome: Genome) -> Proposal:
        return replace(self._in_flight[-1], genome=genome)

    def _learn(self, outcome: Outcome) -> None:
        self._inner.tell(self._in_flight.pop(0).genome, outcome)


def _important(expected_change: Sequence[float]) -> list[bool]:
    """Whether each gene is among the fewest that hold `_SHARE` of the whole expected change. Genes with an unknown one
    (NaN) are important."""
    changes = np.array(expected_change)
    order = np.argsort(-np.nan_to_num(changes), kind="stable")
    cumulative = np.cumsum(np.nan_to_num(changes)[order])
    important = np.isnan(changes)
    if cumulative.size and cumulative[-1] > 0:
        important[order[: int(np.searchsorted(cumulative, _SHARE * cumulative[-1])) + 1]] = True
    return [bool(x) for x in important]


class Bundles:
    """A small space around one genome: its `dimensions` are the choices, and one shift for each group of tied genes.

    The values of one gene and source in one layer are tied. Only the important ones are shifted, and a group without
    one is left out.
    """

    def __init__(self, dimensions: Sequence[Dimension], center: Genome, important: Sequence[bool]) -> None:
        """`center`: the genome of no shift. `important`: for each dimension, in order."""
        self._encoding = Encoding(dimensions)
        self._center = self._encoding.encode(center)
        self._choices = [d for d in dimensions if len(d.choices) > 1]
        numbers = [d for d, kept in zip(dimensions, important, strict=True) if kept and not d.choices]
        moving = [d for d in numbers if d.low < d.high]
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
        """A genome of this space as one of the whole space."""
        vector: Vector = self._center.copy()
        for key, coordinates in self._groups.items():
            vector[coordinates] += float(genome[key])
        shifted = self._encoding.decode(np.clip(vector, 0.0, 1.0))
        return {**shifted, **{d.key: genome[d.key] for d in self._choices}}


def _by_layer(dimension: Dimension) -> str:
    """``weight of shipping, layer 3``."""
    place = layer_name(dimension)
    return f"{_by_source(dimension)}{', ' if place else ''}{place}"


def _by_source(dimension: Dimension) -> str:
    source = dimension.place.get("sources")
    return f"{dimension.gene or dimension.key}{f' of {source}' if source else ''}"


def layer_name(dimension: Dimension) -> str:
    """The layer or layer group of a dimension, in words; empty where a dimension has none."""
    if "layers" in dimension.place:
        return f"layers {dimension.place['layers']}"
    tensor = dimension.place.get("tensors")
    if tensor is None:
        return ""
    number = _LAYER.search(tensor)
    return f"layer {number[1]}" if number else "outside of the layers"
