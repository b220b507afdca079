"""The search space of one study: a space file laid over the layers of its base. Genome -> recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from evomerge.checkpoints.structure import is_matrix
from evomerge.errors import InputError
from evomerge.files.objects import EXPONENT, INCLUDE, WINDOW, GeneSpec, SpaceSpec
from evomerge.recipe.bands import even
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.registry import BAND_ARITHMETIC, CHOICES, METHODS, Choice, Method, Parameter, directions
from evomerge.space.base import Models, SearchSpace, joined
from evomerge.space.frozen import cut, frozen_layers, frozen_values, kept_value
from evomerge.space.genes import OTHER, Axes, dimension_key, dimensions, shares_at, takes_part, value_at
from evomerge.space.reference_genomes import (
    UNIFORM,
    ReferenceGenome,
    ReferenceKind,
    reference_genomes,
    subset_genome,
)
from evomerge.space.trajectory import decay_weights
from evomerge.types import Genome, Value


class Space(SearchSpace):
    """A search space of merges. Makes recipes: of a genome, of the parents as they are, of the uniform average."""

    def __init__(self, spec: SpaceSpec, models: Models) -> None:
        """Raises InputError where the layer groups, or what is frozen, do not fit the base's layers."""
        super().__init__(spec, models)
        self.axes = _axes(spec, models)
        self._all = tuple(
            d
            for d in dimensions(spec.genes, self.axes)
            if d.gene not in (WINDOW, EXPONENT) or d.place["sources"] in models.trajectories
        )
        self.frozen_layers = frozen_layers(spec, models.layers)
        self.frozen_values: Genome = frozen_values(self._all, spec, self.axes, self.frozen_layers)
        self._spans = cut(self.axes.groups, self.frozen_layers)
        self.dimensions = self._searched = tuple(d for d in self._all if d.key not in self.frozen_values)
        self._genes = {gene.name: gene for gene in spec.genes}

    @property
    def banded(self) -> bool:
        """Whether weights are per band."""
        return any(gene.bands is not None for gene in self.spec.genes)

    def factored(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """The shapes of the matrices whose deltas are factored, and in how many directions, one for each source."""
        yield from self._decomposed()
        gene = next((gene for gene in self.spec.genes if gene.bands is not None), None)
        if gene is not None:
            for name, layer in self.models.tensors.items():
                if len(self.axes.bands_of(gene, name)) > 1 and layer not in self.frozen_layers:
                    shape = self.models.shapes[name]
                    kept = self.axes.top_of(gene, name) or min(shape)
                    yield from ((shape, kept) for _ in self.models.sources)

    def _decomposed(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """What `factored` gives for methods that merge by singular directions."""
        of_methods = (METHODS[CHOICES[name].method].decomposed for name in self.spec.methods)
        kinds = {kind for kind in of_methods if kind is not None}
        sources = len(self.models.sources)
        # Those of cores take no time, and no memory.
        for name, layer in self.models.tensors.items() if kinds and not self.spec.core else ():
            shape = self.models.shapes.get(name, ())
            if layer not in self.frozen_layers and is_matrix(name, shape):
                for kind in kinds:
                    # Parts are held as they are, and orthogonal to the others'.
                    count = directions(kind, min(shape[-2:]), sources) * (2 if kind == "parts" else 1)
                    yield from [(shape[-2:], count)] * sources * (shape[0] if len(shape) == 3 else 1)

    @property
    def reference_genomes(self) -> dict[str, ReferenceGenome]:
        """The genomes of well-known models, by label, as far as the space holds them (`space.reference_genomes`)."""
        sources = tuple(self.models.sources)
        references = reference_genomes(self._all, sources, self.spec.methods, self.spec.fixed)
        return {
            label: replace(reference, genome={d.key: reference.genome[d.key] for d in self._searched})
            for label, reference in references.items()
            if self._holds(reference)
        }

    @property
    def leaves_out(self) -> bool:
        """Whether a merge can leave sources out."""
        return INCLUDE in self._genes

    def subset(self, members: Sequence[str]) -> ReferenceGenome:
        """The genome of the plain average of some sources, as near as the ranges come to it."""
        genome = subset_genome(self._searched, self.spec.methods, self.spec.fixed, members)
        return ReferenceGenome(genome, ReferenceKind.SUBSET)

    def _holds(self, reference: ReferenceGenome) -> bool:
        """Whether the genome, without what is frozen, is still that model: with another frozen value, or frozen layers,
        it would be one with unknown scores."""
        if reference.kind is ReferenceKind.EQUAL_WEIGHTS:
            return True
        if reference.kind is ReferenceKind.BASE and not self._moved():
            return True
        agrees = all(reference.genome[key] == value for key, value in self.frozen_values.items())
        return agrees and not self.frozen_layers and not self.spec.freeze.modules

    def _moved(self) -> bool:
        """Whether a frozen source has a part in every merge."""
        return any(self.spec.freeze.modules.values()) or any(
            value != 0.0 for key, value in self.frozen_values.items() if key.startswith("weight[")
        )

    def references(self) -> dict[str, Recipe]:
        return {**super().references(), UNIFORM: self.uniform()}

    def outline(self) -> Recipe:
        return self.uniform()

    def parent(self, reference: str) -> Recipe:
        """A checkpoint as it is. Under a tokenizer policy, or where the models do not all store the same tensors, as it
        takes part in every merge: brought to the output's vocabulary, and with the base's head if it has none. That
        depends on the other models, so they are listed with weight 0."""
        if self.models.tokenizer is None and not self.models.uneven:
            return Recipe((self._document("passthrough", (Slice((Input(reference),)),), None),))
        models = [*self.models.sources.values(), self.models.base]
        return self._average({model: float(model == reference) for model in models})

    def included(self, genome: Genome) -> tuple[str, ...]:
        """The sources that take part in a genome's merge; at least one, that with the largest number."""
        sources = tuple(self.models.sources)
        if INCLUDE not in self._genes:
            return sources
        values = {**self.frozen_values, **genome}
        numbers = [float(values[dimension_key(INCLUDE, [source])]) for source in sources]
        included = tuple(s for s, number in zip(sources, numbers, strict=True) if takes_part(number))
        return included or (sources[numbers.index(max(numbers))],)

    def shares_of(self, source: str, genome: Genome) -> dict[str, float]:
        """What of a source's weight each of its models has: all of it, or that of a trajectory's curve."""
        members = self.models.trajectories.get(source)
        if members is None:
            return {self.models.sources[source]: 1.0}
        values = {**self.frozen_values, **genome}
        window, exponent = (float(values[dimension_key(gene, [source])]) for gene in (WINDOW, EXPONENT))
        weights = decay_weights(window, exponent, len(members))
        return {member: share for member, share in zip(members, weights, strict=True) if share}

    def uniform(self) -> Recipe:
        """The plain average of all sources (model soup, Wortsman et al. 2022, section 2); of a trajectory, that of all
        its checkpoints."""
        weights: dict[str, float] = {}
        for source, reference in self.models.sources.items():
            members = self.models.trajectories.get(source, (reference,))
            weights |= dict(zip(members, decay_weights(len(members), 1.0, len(members)), strict=True))
        # The base, at weight 0, decides config and tokenizer, which mergekit otherwise takes from any model.
        return self._average({**weights, self.models.base: 0.0})

    def _average(self, weights: Mapping[str, float]) -> Recipe:
        inputs = tuple(Input(model, parameters={"weight": weight}) for model, weight in weights.items())
        return Recipe((self._document("linear", (Slice(inputs),), self.models.base),))

    def recipe(self, genome: Genome) -> Recipe:
        """The recipe of a genome: one document, or, where the method differs by layer group, one document for each
        method and a last one that stacks each group's layers from the document of its method (mergekit-multi)."""
        genome = {**self.frozen_values, **genome}
        starts, frozen = [start for start, _ in self._spans], self.frozen_layers
        searched = [self._method_at(genome, start) for start in starts if start not in frozen]
        methods = [searched[0] if start in frozen else self._method_at(genome, start) for start in starts]
        used = list(dict.fromkeys(methods))
        if len(used) == 1:
            return Recipe((self._merge(genome, used[0]),))
        stages = [self._merge(genome, method, f"stage-{method}") for method in used]
        stack = [Slice((Input(f"stage-{method}", group),)) for method, group in zip(methods, self._spans, strict=True)]
        # The stages have the output's vocabulary already.
        return Recipe((*stages, replace(self._document("passthrough", tuple(joined(stack)), None), tokenizer=None)))

    def shares(self, parameter: str, source: str, tensor: str) -> tuple[tuple[str, float], ...]:
        """The dimensions that a parameter of one source ("": of the whole merge) takes its value from at a tensor, and
        the share of each in it; none where it is no gene, or is frozen."""
        gene, layer = self._genes.get(parameter), self.models.tensors[tensor]
        if gene is None or gene.choices or layer in self.frozen_layers:
            return ()
        module = self.axes.module_of(tensor)
        if module in self.spec.freeze.modules:
            return ()
        if "bands" in gene.per:
            numbers = range(len(self.axes.bands_of(gene, tensor)))
            shares = tuple(shares_at(gene, self.axes, source, layer, module, tensor, band)[0] for band in numbers)
        else:
            shares = shares_at(gene, self.axes, source, layer, module, tensor)
        return tuple((key, share) for key, share in shares if key not in self.frozen_values)

    def _method_at(self, genome: Genome, layer: int) -> str:
        gene = self._genes.get("method")
        if gene is None:
            return self.spec.methods[0]
        return str(value_at(gene, genome, self.axes, "", layer, OTHER))

    def _merge(self, genome: Genome, name: str, stage: str | None = None) -> Document:
        choice = CHOICES[name]
        slices = joined(self._slices(genome, choice))
        # Written with `models`, mergekit would merge a base that is not listed.
        if len(slices) == 1 and _listed(METHODS[choice.method]):
            inputs = tuple(Input(i.model, None, i.parameters) for i in slices[0].inputs)
            slices = [Slice(inputs, slices[0].parameters)]
        if self.banded:  # whose other parameters are as task arithmetic has them by default
            return self._document(BAND_ARITHMETIC, tuple(slices), self.models.base, None, stage)
        names = {p.name for p in choice.parameters}
        fixed = {k: v for k, v in self.spec.fixed.items() if k in names}
        merged = self._document(choice.method, tuple(slices), self.models.base, {**choice.settled, **fixed}, stage)
        return replace(merged, core=self.spec.core, core_rank=self.spec.core_rank)

    def _slices(self, genome: Genome, choice: Choice) -> list[Slice]:
        each_layer = self.axes.interpolate or any("tensors" in gene.per for gene in self.spec.genes)
        spans = [(i, i + 1) for i in range(self.models.layers)] if each_layer else self._spans
        return [self._slice(genome, choice, span) for span in spans]

    def _slice(self, genome: Genome, choice: Choice, span: tuple[int, int]) -> Slice:
        method = METHODS[choice.method]
        searched = [p for p in choice.parameters if p.name in self._genes]
        inputs: list[Input] = []
        for source in self.included(genome):
            values = self._values(genome, searched, "source", source, span[0])
            if source in self.models.trajectories:
                weight = values.get("weight", self.spec.fixed.get("weight", 1.0))
                shares = self.shares_of(source, genome)
                inputs += [Input(m, span, {**values, "weight": scaled(weight, s)}) for m, s in shares.items()]
            else:
                inputs.append(Input(self.models.sources[source], span, values))
        if span[0] in self.frozen_layers:
            inputs = [Input(i.model, i.layers, {**i.parameters, **_still(method, "source")}) for i in inputs]
        if _listed(method):
            inputs.append(Input(self.models.base, span, _base_parameters(method)))
        parameters = self._values(genome, searched, "tensor", "", span[0])
        if span[0] in self.frozen_layers:
            parameters |= _still(method, "tensor")
        return Slice(tuple(inputs), parameters)

    def _values(
        self, genome: Genome, parameters: Sequence[Parameter], scope: str, source: str, layer: int
    ) -> dict[str, Any]:
        return {p.name: self._value(self._genes[p.name], genome, source, layer) for p in parameters if p.scope == scope}

    def value(
        self, gene: GeneSpec, genome: Genome, source: str, layer: int, module: str, tensor: str = "", band: int = 0
    ) -> Value:
        """The gene's value at one place; in a frozen module the one that keeps it."""
        module = self.axes.module_of(tensor) if tensor else module
        if module in self.spec.freeze.modules:
            kept = kept_value(gene.name, source, self.spec.freeze.modules[module])
            if kept is not None:
                return kept
        return value_at(gene, genome, self.axes, source, layer, module, tensor, band)

    def _value(self, gene: GeneSpec, genome: Genome, source: str, layer: int) -> Any:
        """A number, or one filtered entry for each module or tensor where they differ."""
        if "bands" in gene.per:
            return self._by_band(gene, genome, source, layer)
        if "tensors" in gene.per:
            return self._by_tensor(gene, genome, source, layer)
        if "modules" not in gene.per and not self.spec.freeze.modules:
            return self.value(gene, genome, source, layer, OTHER)
        values = {m: self.value(gene, genome, source, layer, m) for m in (*self.axes.modules, OTHER)}
        if len(set(values.values())) == 1:
            return values[OTHER]
        entries = [{"filter": text, "value": values[m]} for m, text in self.axes.modules.items()]
        return [*entries, {"value": values[OTHER]}]

    def _by_tensor(self, gene: GeneSpec, genome: Genome, source: str, layer: int) -> Any:
        names = [name for name, place in self.models.tensors.items() if place == layer]
        values = {name: self.value(gene, genome, source, layer, "", name) for name in names}
        if len(set(values.values())) == 1:
            return next(iter(values.values()))
        # A filter matches any name that it is a part of, and the first that matches wins.
        entries = [{"filter": name, "value": values[name]} for name in sorted(names, key=len, reverse=True)]
        # mergekit asks for the head of a model that has none of its own.
        return [*entries, {"value": values[names[0]]}] if self.models.tied else entries

    def _by_band(self, gene: GeneSpec, genome: Genome, source: str, layer: int) -> list[dict[str, Any]]:
        """An entry for each tensor: a number for each of its bands, the bands' sizes where they are not equal, and how
        many directions are cut where there is a rest."""
        entries: list[dict[str, Any]] = []
        names = [name for name, place in self.models.tensors.items() if place == layer]
        for name in sorted(names, key=len, reverse=True):
            sizes, top = self.axes.bands_of(gene, name), self.axes.top_of(gene, name)
            numbers = range(len(sizes))
            values = [float(self.value(gene, genome, source, layer, "", name, band)) for band in numbers]
            entry: dict[str, Any] = {"filter": name}
            entry |= {"bands": values} if len(values) > 1 else {"value": values[0]}
            cut = sizes if top is None else sizes[:-1]
            if len(values) > 1 and cut != even(sum(cut), len(cut)):
                entry["sizes"] = list(cut)
            if top is not None:
                entry["top"] = top
            entries.append(entry)
        # A source can store a head of its own where the base's is its embeddings.
        return [*entries, {"value": self.value(gene, genome, source, layer, "", names[0])}]


def scaled(value: Any, share: float) -> Any:
    """A number, or one filtered entry for each module or tensor, times a share."""
    if isinstance(value, list):
        return [{**entry, "value": scaled(entry["value"], share)} for entry in value]
    return float(value) * share


def _listed(method: Method) -> bool:
    """Whether the base stands among the inputs. A method that takes it as a model like the others and has no weights
    (karcher) would merge it; as `base_model` alone it still gives config and tokenizer."""
    return method.base != "ordinary" or method.parameter("weight") is not None


def _still(method: Method, scope: str) -> dict[str, Any]:
    """The parameters that leave a layer as the base's: weights of 0, or the beginning of the path from it."""
    parameter = method.parameter("weight" if method.base == "subtracted" else "t")
    return {parameter.name: 0.0} if parameter is not None and parameter.scope == scope else {}


def _base_parameters(method: Method) -> dict[str, Any]:
    """The base's parameters. Where it is a model like the others its weight is 0, so that it only gives config and
    tokenizer."""
    return {"weight": 0.0} if method.base == "ordinary" else {}


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
    knots = _knots(spec, groups, layers)
    return Axes(tuple(models.sources), groups, spec.modules, spec.interpolate, knots, models.tensors, models.shapes)


def _knots(spec: SpaceSpec, groups: Sequence[tuple[int, int]], layers: int) -> tuple[float, ...]:
    """The positions of the groups' values: evenly from the first layer to the last (as mergekit's gradients), or in the
    middle of explicitly given ranges."""
    if isinstance(spec.layers, int) and len(groups) > 1:
        return tuple(i * (layers - 1) / (len(groups) - 1) for i in range(len(groups)))
    return tuple((start + end - 1) / 2 for start, end in groups)
