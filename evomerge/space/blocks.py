"""A path as blocks: runs of layers with searched borders, each of one model as it is, or a merge of all models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from evomerge.errors import InputError
from evomerge.files.objects import SpaceSpec
from evomerge.recipe.recipe import Input, Recipe, Slice
from evomerge.registry import Choice
from evomerge.space.base import Models, PathModel, joined
from evomerge.space.genes import dimension_key
from evomerge.space.paths import Limits, PathSpace, Place, spare
from evomerge.space.reference_genomes import ReferenceGenome, ReferenceKind
from evomerge.space.slots import shared
from evomerge.space.space import Space
from evomerge.types import Dimension, Genome

Span = tuple[int, int]


def even(begin: int, end: int, count: int) -> list[Span]:
    """The layers [begin, end) in `count` runs of about equal length."""
    borders = [begin + round(i * (end - begin) / count) for i in range(count + 1)]
    return list(pairwise(borders))


def border(value: object, most: int) -> int:
    """A border as a whole number of layers, halves upwards."""
    return min(max(math.floor(float(str(value)) + 0.5), 0), most)


def shortened(
    spans: Sequence[Span],
    least: Sequence[int],
    fits: Callable[[Sequence[Span]], bool],
    depth: int,
    from_front: frozenset[int] = frozenset(),
) -> list[Span]:
    """Runs of layers, shortened until they fit: the longest one by its last layer, again and again; among equals the
    one that ends where a model misses layers least. `least`: of each, the layers that it keeps. Those `from_front`
    lose their first layers."""
    cut = list(spans)
    while not fits(cut):
        longer = [k for k, (begin, end) in enumerate(cut) if end - begin > least[k]]
        if not longer:
            break
        most = max(cut[k][1] - cut[k][0] for k in longer)
        longest = {k: cut[k][0] if k in from_front else cut[k][1] - 1 for k in longer if cut[k][1] - cut[k][0] == most}
        ends = spare(longest.values(), depth)
        k = next(k for k in longest if longest[k] == ends[0])
        begin, end = cut[k]
        cut[k] = (begin + 1, end) if k in from_front else (begin, end - 1)
    return cut


class BlockSpace(PathSpace):
    """A search space of blocks of single models, between the first model's first and last layer. A block that ends
    before it begins is empty."""

    def __init__(self, spec: SpaceSpec, models: Models) -> None:
        super().__init__(spec, models)
        assert self.flow.blocks is not None
        names, depth = tuple(self.path.models), self._depth(self.first)
        deepest = float(max(map(self._depth, names)))
        own = [(self.first, span) for span in even(1, depth - 1, self.flow.blocks)]
        dimensions: list[Dimension] = []
        for k, (_, (begin, end)) in enumerate(self._within(own)):
            place = {"layers": str(k)}
            if len(names) > 1:
                key = dimension_key("source", [str(k)])
                dimensions.append(Dimension(key, init=self.first, choices=names, gene="source", place=place))
            for gene, init in (("begin", begin), ("end", end)):
                key = dimension_key(gene, [str(k)])
                dimensions.append(Dimension(key, 0.0, deepest, float(init), False, (), gene, place))
        if self.form == "shared":
            for before in names:
                for after in names:
                    for step in ("back", "on", "ahead"):
                        if (before, step) != (after, "on"):
                            self._scale_dimension((before, after, step))
        self.dimensions = (*dimensions, *self.scales.values())

    def facts(self) -> dict[str, str]:
        return {"blocks": str(self.flow.blocks), **super().facts()}

    def _form(self) -> tuple[str, str]:
        if self.flow.scales.form == "auto":
            return "none", "blocks have few borders; `scales: shared` searches them"
        return self._exact(self.flow.scales.form)

    def _scale(self, before: Place, after: Place) -> str | None:
        if self.form == "none" or (before[0], before[1] + 1) == after:
            return None  # nothing happens between a layer and the next one of its model
        return dimension_key("scale", shared(before, after))

    def _within(self, blocks: Sequence[tuple[str, Span]]) -> list[tuple[str, Span]]:
        """The blocks, shortened to the limits."""
        models = [model for model, _ in blocks]

        def fits(spans: Sequence[Span]) -> bool:
            return self.limits.hold(self._sizes(self._stacked(list(zip(models, spans, strict=True)))))

        spans = shortened([span for _, span in blocks], [0] * len(blocks), fits, self._depth(self.first))
        return list(zip(models, spans, strict=True))

    def _stacked(self, blocks: Sequence[tuple[str, Span]]) -> list[Place]:
        first, last = self._ends
        return [first, *((model, layer) for model, span in blocks for layer in range(*span)), last]

    def _places(self, genome: Genome) -> list[Place]:
        blocks: list[tuple[str, Span]] = []
        for k in map(str, range(self.flow.blocks or 0)):
            model = str(genome.get(f"source[{k}]", self.first))
            begin, end = (border(genome[f"{gene}[{k}]"], self._depth(model)) for gene in ("begin", "end"))
            blocks.append((model, (begin, max(begin, end))))
        return self._stacked(self._within(blocks))


class MergedBlockSpace(Space):
    """A search space of blocks that are merges of all models, with values of the merge's genes for each block (its axis
    `layers`). The first block begins with the models' first layer, and the last one ends with their last."""

    def __init__(self, spec: SpaceSpec, models: Models) -> None:
        """Raises InputError where the limits do not fit the base."""
        flow = spec.dataflow
        assert flow is not None
        assert flow.blocks is not None
        assert models.path is not None
        count, depth = flow.blocks, models.layers
        if count > depth:
            problem = f"{count} blocks, but the base has {depth} layers"
            raise InputError(problem, f"give at most {depth}", spec.at("blocks"))
        super().__init__(replace(spec, layers=count), models)
        self._model: PathModel = next(iter(models.path.models.values()))
        self.limits = Limits.of(spec, self._model)
        self._least = [int(k in (0, count - 1)) for k in range(count)] if count > 1 else [depth]
        own = even(0, depth, count)
        self._own = self._within(own)
        if not self._fits(self._own):
            problem = f"{count} block is the whole model, which is beyond {self.limits}"
            raise InputError(problem, "give more blocks, or wider limits", spec.at("blocks"))
        self._is_whole = self._own == own
        borders: list[Dimension] = []
        for k, (begin, end) in enumerate(self._own):
            ends = [("begin", begin)] * (k > 0) + [("end", end)] * (k < count - 1)
            for gene, init in ends:
                key = dimension_key(gene, [str(k)])
                borders.append(Dimension(key, 0.0, float(depth), float(init), False, (), gene, {"layers": str(k)}))
        self._borders: Genome = {d.key: d.tidy(d.init) for d in borders}
        self.dimensions = (*borders, *self._searched)

    @property
    def reference_genomes(self) -> dict[str, ReferenceGenome]:
        return {
            label: replace(reference, genome={**self._borders, **reference.genome})
            for label, reference in super().reference_genomes.items()
            if self._is_whole or reference.kind is ReferenceKind.EQUAL_WEIGHTS  # else it is a part of that model
        }

    def facts(self) -> dict[str, str]:
        return {"blocks": f"{len(self._own)}, each a merge", "limit": str(self.limits)}

    def largest(self) -> Recipe:
        ends = {d.key: d.low if d.gene == "begin" else d.high for d in self.dimensions if d.gene in ("begin", "end")}
        return self.recipe({**self.start, **ends})

    def recipe(self, genome: Genome) -> Recipe:
        """As that of a space of merges; where the method differs by block, the stages have all blocks."""
        blocks = self._blocks(genome)
        used = {k: self._method_at(genome, self._spans[k][0]) for k, (begin, end) in enumerate(blocks) if end > begin}
        methods = list(dict.fromkeys(used.values()))
        if len(methods) == 1:
            return Recipe((self._merge(genome, methods[0]),))
        stack, at = list[Slice](), 0
        for k, method in used.items():
            length = blocks[k][1] - blocks[k][0]
            stack.append(Slice((Input(f"stage-{method}", (at, at + length)),)))
            at += length
        last = replace(self._document("passthrough", tuple(joined(stack)), None), tokenizer=None)
        return Recipe((*(self._merge(genome, method, f"stage-{method}") for method in methods), last))

    def _slices(self, genome: Genome, choice: Choice) -> list[Slice]:
        slices = []
        for group, block in zip(self._spans, self._blocks(genome), strict=True):
            if block[1] > block[0]:
                slice_ = self._slice(genome, choice, group)
                slices.append(replace(slice_, inputs=tuple(replace(i, layers=block) for i in slice_.inputs)))
        return slices

    def _blocks(self, genome: Genome) -> list[Span]:
        """The layers of each block, within the limits."""
        last, depth = len(self._own) - 1, self.models.layers
        blocks = []
        for k in range(last + 1):
            begin = border(genome[f"begin[{k}]"], depth) if k else 0
            end = border(genome[f"end[{k}]"], depth) if k < last else depth
            if k in (0, last):
                begin, end = min(begin, depth - 1), max(end, 1)
            blocks.append((begin, max(begin, end)))
        return self._within(blocks)

    def _within(self, blocks: Sequence[Span]) -> list[Span]:
        from_front = frozenset({len(blocks) - 1} - {0})
        return shortened(blocks, self._least, self._fits, self.models.layers, from_front)

    def _fits(self, blocks: Sequence[Span]) -> bool:
        return self.limits.hold([self._model.layers[i] for span in blocks for i in range(*span)])
