"""The search space of one study: a space file laid over the layers of its base. Genome -> recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from evomerge.errors import InputError
from evomerge.files.objects import GeneSpec, SpaceSpec
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.registry import METHODS, Method, Parameter
from evomerge.space.genes import OTHER, Axes, dimensions, value_at
from evomerge.types import Dimension, Genome


@dataclass(frozen=True)
class Models:
    """What a recipe says of the checkpoints: portable references, the layer count, the output's dtype."""

    base: str
    sources: Mapping[str, str]
    layers: int
    dtype: str


class Space:
    """Builds recipes: of a genome, of the parents as they are, of the uniform average."""

    def __init__(self, spec: SpaceSpec, models: Models) -> None:
        """Raises InputError where the layer groups do not fit the base's layers."""
        self.spec, self.models = spec, models
        self.axes = _axes(spec, models)
        self.dimensions: tuple[Dimension, ...] = dimensions(spec.genes, self.axes)
        self._genes = {gene.name: gene for gene in spec.genes}

    @property
    def start(self) -> Genome:
        """The genome of every gene's `init`."""
        return {d.key: d.tidy(d.init) for d in self.dimensions}

    @property
    def chat_template(self) -> str:
        """As recipes say it: "auto", a source's reference, or a Jinja text."""
        return self._reference(self.spec.chat_template)

    def _reference(self, word: str) -> str:
        """The base's or a source's reference for its name; any other word as it is."""
        return self.models.base if word == "base" else self.models.sources.get(word, word)

    def parent(self, reference: str) -> Recipe:
        """A checkpoint as it is."""
        inputs = (Input(reference),)
        return Recipe((self._document("passthrough", (Slice(inputs),), None),))

    def uniform(self) -> Recipe:
        """The plain average of all sources (model soup, Wortsman et al. 2022, section 2)."""
        inputs = [Input(ref, parameters={"weight": 1.0}) for ref in self.models.sources.values()]
        # The base, at weight 0, decides config and tokenizer, which mergekit otherwise takes from any model.
        inputs.append(Input(self.models.base, parameters={"weight": 0.0}))
        return Recipe((self._document("linear", (Slice(tuple(inputs)),), self.models.base),))

    def recipe(self, genome: Genome) -> Recipe:
        """The recipe of a genome: one document, or, where the method differs by layer group, one document for each
        method and a last one that stacks each group's layers from the document of its method (mergekit-multi)."""
        methods = [self._method_at(genome, start) for start, _ in self.axes.groups]
        used = list(dict.fromkeys(methods))
        if len(used) == 1:
            return Recipe((self._merge(genome, used[0]),))
        stages = [self._merge(genome, method, name=f"stage-{method}") for method in used]
        stack = [
            Slice((Input(f"stage-{method}", group),)) for method, group in zip(methods, self.axes.groups, strict=True)
        ]
        return Recipe((*stages, self._document("passthrough", tuple(_joined(stack)), None)))

    def _method_at(self, genome: Genome, layer: int) -> str:
        gene = self._genes.get("method")
        if gene is None:
            return self.spec.methods[0]
        return str(value_at(gene, genome, self.axes, "", layer, OTHER))

    def _merge(self, genome: Genome, method: str, name: str | None = None) -> Document:
        spans = [(i, i + 1) for i in range(self.models.layers)] if self.axes.interpolate else self.axes.groups
        slices = _joined([self._slice(genome, method, span) for span in spans])
        if len(slices) == 1:
            inputs = tuple(Input(i.model, None, i.parameters) for i in slices[0].inputs)
            slices = [Slice(inputs, slices[0].parameters)]
        fixed = {k: v for k, v in self.spec.fixed.items() if METHODS[method].parameter(k)}
        return self._document(method, tuple(slices), self.models.base, fixed, name)

    def _slice(self, genome: Genome, name: str, span: tuple[int, int]) -> Slice:
        method = METHODS[name]
        searched = [p for p in method.parameters if p.name in self._genes]
        inputs = [
            Input(reference, span, self._values(genome, searched, "source", source, span[0]))
            for source, reference in self.models.sources.items()
        ]
        inputs.append(Input(self.models.base, span, _base_parameters(method)))
        return Slice(tuple(inputs), self._values(genome, searched, "tensor", "", span[0]))

    def _values(
        self, genome: Genome, parameters: Sequence[Parameter], scope: str, source: str, layer: int
    ) -> dict[str, Any]:
        return {p.name: self._value(self._genes[p.name], genome, source, layer) for p in parameters if p.scope == scope}

    def _value(self, gene: GeneSpec, genome: Genome, source: str, layer: int) -> Any:
        """A number, or one filtered entry for each module where they differ."""
        if "modules" not in gene.per:
            return value_at(gene, genome, self.axes, source, layer, OTHER)
        values = {m: value_at(gene, genome, self.axes, source, layer, m) for m in (*self.axes.modules, OTHER)}
        if len(set(values.values())) == 1:
            return values[OTHER]
        entries = [{"filter": text, "value": values[m]} for m, text in self.axes.modules.items()]
        return [*entries, {"value": values[OTHER]}]

    def _document(
        self,
        method: str,
        slices: tuple[Slice, ...],
        base: str | None,
        parameters: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Document:
        return Document(
            method=method,
            slices=slices,
            base=base,
            parameters=parameters or {},
            out_dtype=self.models.dtype,
            tokenizer_source=None if self.spec.tokenizer == "base" else self._reference(self.spec.tokenizer),
            chat_template=self.chat_template if name is None else None,
            name=name,
            seed=int(self.spec.optimizer.get("seed", 0)) if METHODS[method].stochastic else 0,
        )


def _base_parameters(method: Method) -> dict[str, Any]:
    """Where the base is a model like the others it takes part with weight 0, so that config and tokenizer are its."""
    return {"weight": 0.0} if method.base == "ordinary" else {}


def _joined(slices: Sequence[Slice]) -> list[Slice]:
    """Neighbouring slices that continue each other with equal parameters become one."""
    joined: list[Slice] = []
    for piece in slices:
        if joined and _continues(joined[-1], piece):
            inputs = [
                Input(a.model, (a.layers[0], b.layers[1]), a.parameters)
                for a, b in zip(joined[-1].inputs, piece.inputs, strict=True)
                if a.layers and b.layers
            ]
            joined[-1] = Slice(tuple(inputs), piece.parameters)
        else:
            joined.append(piece)
    return joined


def _continues(first: Slice, second: Slice) -> bool:
    return first.parameters == second.parameters and all(
        a.model == b.model and a.parameters == b.parameters and a.layers and b.layers and a.layers[1] == b.layers[0]
        for a, b in zip(first.inputs, second.inputs, strict=True)
    )


def _axes(spec: SpaceSpec, models: Models) -> Axes:
    layers = models.layers
    where = spec.at("layers")
    if spec.layers == "each":
        groups = tuple((i, i + 1) for i in range(layers))
    elif isinstance(spec.layers, int):
        count = spec.layers
        if count > layers:
            raise InputError(f"{count} groups, but the base has {layers} layers", f"give at most {layers}", where)
        bounds = [round(i * layers / count) for i in range(count + 1)]
        groups = tuple(pairwise(bounds))
    else:
        assert not isinstance(spec.layers, str)
        groups = spec.layers
        if groups[-1][1] != layers:
            problem = f"the ranges end at layer {groups[-1][1]}, the base has {layers} layers"
            raise InputError(problem, f"let the last range end at {layers}", where)
    return Axes(tuple(models.sources), groups, spec.modules, spec.interpolate, _knots(spec, groups, layers))


def _knots(spec: SpaceSpec, groups: Sequence[tuple[int, int]], layers: int) -> tuple[float, ...]:
    """Where the groups' values sit: evenly from the first layer to the last (as mergekit's gradients), or in the
    middle of explicitly given ranges."""
    if isinstance(spec.layers, int) and len(groups) > 1:
        return tuple(i * (layers - 1) / (len(groups) - 1) for i in range(len(groups)))
    return tuple((start + end - 1) / 2 for start, end in groups)
