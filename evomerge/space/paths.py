"""Spaces of paths: a candidate is a stack of the models' own layers, in any order, and no weights are merged (Akiba et
al. 2024, "Evolutionary Optimization of Model Merging Recipes", data-flow space, arXiv:2403.13187).

The first model of the path gives embeddings, final norm and head, and a path begins with its first layer and ends with
its last one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from evomerge.errors import InputError
from evomerge.files.objects import WINNER, SpaceSpec
from evomerge.recipe.recipe import Input, Recipe, Slice
from evomerge.space.base import FORMER_WINNER, Models, PathModel, SearchSpace, joined
from evomerge.space.genes import dimension_key
from evomerge.space.reference_genomes import BASE, ReferenceGenome, ReferenceKind
from evomerge.types import Dimension, Genome

Place = tuple[str, int]
"""A model's name and a layer of it."""

_WHOLE = 1_000.0

_MOST_SCALE = 1e30
"""A product of input scales ends there, and at its inverse: beyond, weights of float32 are infinite or zero."""

_SPARE = 0.75
"""The relative depth of the layers that a model misses least. What a layer adds to its input gets less with depth, and
the last layers are needed again (Gromov et al. 2024, arXiv:2403.17887; Men et al. 2024, arXiv:2403.03853)."""


@dataclass(frozen=True)
class Limits:
    """The most layers and parameters of a candidate; `outside`: the parameters that are in none of its layers."""

    layers: int
    parameters: float
    outside: int

    @classmethod
    def of(cls, spec: SpaceSpec, first: PathModel) -> Limits:
        """InputError where not even the first and the last layer of the first model are within them."""
        flow = spec.dataflow
        assert flow is not None
        depth = len(first.layers)
        if depth < 2:
            problem = f"the first model has {depth} layer, and a path begins with its first and ends with its last"
            raise InputError(problem, "name a deeper model first", spec.at("path"))
        most = math.inf if flow.max_parameters is None else flow.max_parameters
        if most <= _WHOLE:
            most *= first.outside + sum(first.layers)
        limits = cls(flow.max_layers or 2 * depth, most, first.outside)
        least = first.outside + first.layers[0] + first.layers[-1]
        if least > most:
            problem = f"{most:,.0f} parameters, and embeddings, head, first and last layer are {least:,} already"
            raise InputError(problem, f"give at least {least:,}", spec.at("max_parameters"))
        return limits

    def hold(self, layers: Sequence[int]) -> bool:
        """Whether a stack of layers of so many elements each is within them."""
        return len(layers) <= self.layers and self.outside + sum(layers) <= self.parameters

    def __str__(self) -> str:
        parameters = "" if math.isinf(self.parameters) else f", {self.parameters:,.0f} parameters"
        return f"{self.layers} layers{parameters}"


def spare(layers: Iterable[int], depth: int) -> list[int]:
    """Layers of a model of `depth` layers, the ones first that it misses least."""
    return sorted(layers, key=lambda layer: (abs(layer - _SPARE * (depth - 1)), layer))


class PathSpace(SearchSpace):
    """A search space of paths.

    Attributes:
        first: the name of the first model.
        scales: the dimensions of the input scales, by key.
        form: how they are tied, with the reason.
    """

    def __init__(self, spec: SpaceSpec, models: Models) -> None:
        """Raises InputError where the limits, or the scales, do not fit the models."""
        super().__init__(spec, models)
        assert spec.dataflow is not None
        assert models.path is not None
        self.flow, self.path = spec.dataflow, models.path
        self.first = next(iter(self.path.models))
        self.limits = Limits.of(spec, self.path.models[self.first])
        self.form, self.reason = self._form()
        self.scales: dict[str, Dimension] = {}

    # For subclasses.

    @abstractmethod
    def _form(self) -> tuple[str, str]:
        """The form of the scales, and why it is this one."""

    @abstractmethod
    def _places(self, genome: Genome) -> list[Place]:
        """The layers of a genome's path, in order and within the limits."""

    @abstractmethod
    def _scale(self, before: Place, after: Place) -> str | None:
        """The key of the input scale of the hop between two layers; None where it has none."""

    def _exact(self, form: str) -> tuple[str, str]:
        """A form that was asked for, unless scales are not exact. InputError where they were asked for by name."""
        if form == "none" or self.path.writers:
            return form, ""
        if self.flow.scales.form == "auto":
            return "none", self.path.inexact
        problem = f"input scales cannot be written into the weights: {self.path.inexact}"
        raise InputError(problem, "write `scales: none`", self.spec.at("scales"))

    def _scale_dimension(self, places: Sequence[str]) -> None:
        key = dimension_key("scale", places)
        scales = self.flow.scales
        self.scales[key] = Dimension(key, scales.low, scales.high, 1.0, True, (), "scale")

    @property
    def _ends(self) -> tuple[Place, Place]:
        """The layers that every path begins and ends with."""
        return (self.first, 0), (self.first, self._depth(self.first) - 1)

    def _depth(self, model: str) -> int:
        return len(self.path.models[model].layers)

    def _sizes(self, places: Iterable[Place]) -> list[int]:
        return [self.path.models[model].layers[layer] for model, layer in places]

    # The space.

    @property
    def reference_genomes(self) -> dict[str, ReferenceGenome]:
        own = [(self.first, layer) for layer in range(self._depth(self.first))]
        if self._places(self.start) != own:
            return {}
        kind = ReferenceKind.BASE if self.first == BASE else ReferenceKind.SOURCE
        label = FORMER_WINNER if self._is_winner(self.first) else self.first
        return {label: ReferenceGenome(self.start, kind)}

    def references(self) -> dict[str, Recipe]:
        winner = {FORMER_WINNER: self.parent(WINNER)} if self.path.winner else {}
        return {**super().references(), **winner}

    def parent(self, reference: str) -> Recipe:
        return self._recipe((Slice((Input(reference),)),))

    def outline(self) -> Recipe:
        return self.recipe(self.start)

    def largest(self) -> Recipe:
        """The largest model as it is: a stack takes the models' own memory."""
        most = max(self.path.models.values(), key=lambda model: model.outside + sum(model.layers))
        return self.parent(most.reference)

    def stack(self) -> Recipe:
        models = self.path.models.values()
        return self._recipe(tuple(Slice((Input(m.reference, (0, len(m.layers))),)) for m in models))

    def facts(self) -> dict[str, str]:
        models = ", ".join(f"{name} ({self._depth(name)} layers)" for name in self.path.models)
        reason = f": {self.reason}" if self.reason else ""
        counted = f"{self.form}, {len(self.scales)} values" if self.scales else "none"
        return {"path": models, "limit": str(self.limits), "scales": counted + reason}

    def recipe(self, genome: Genome) -> Recipe:
        """One passthrough document: a slice for each run of layers in their order and with one scale."""
        places, scale = self._places(genome), 1.0
        scales = [scale]
        for before, after in pairwise(places):
            key = self._scale(before, after)
            # h -> w h before this layer is: all that is added from here on, over w.
            scale /= 1.0 if key is None else float(genome[key])
            scale = min(max(scale, 1 / _MOST_SCALE), _MOST_SCALE)
            scales.append(float(f"{scale:.6g}"))
        slices = joined([self._hop(place, s) for place, s in zip(places, scales, strict=True)])
        (one,) = slices[0].inputs
        if len(slices) == 1 and not one.parameters and one.layers == (0, self._depth(self.first)):
            slices = [Slice((Input(one.model),))]  # the first model as it is
        return self._recipe(tuple(slices))

    def _hop(self, place: Place, scale: float) -> Slice:
        model, layer = place
        entries = [{"filter": part, "value": scale} for part in self.path.writers]
        parameters: Mapping[str, Any] = {} if scale == 1.0 else {"scale": [*entries, {"value": 1.0}]}
        return Slice((Input(self.path.models[model].reference, (layer, layer + 1), parameters),))

    def _recipe(self, slices: tuple[Slice, ...]) -> Recipe:
        used = {i.model for slice_ in slices for i in slice_.inputs}
        before = self.path.winner if self.path.winner and self.path.models[WINNER].reference in used else ()
        return Recipe((*before, self._document("passthrough", slices, None)))

    def _is_winner(self, model: str) -> bool:
        return model == WINNER and bool(self.path.winner)
