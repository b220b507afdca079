"""What all search spaces have: the facts about their models, the genome that a search begins with, and recipes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.files.objects import SpaceSpec
from evomerge.recipe.recipe import Document, Input, Recipe, Slice, TokenizerPolicy
from evomerge.registry import METHODS
from evomerge.space.reference_genomes import BASE, ReferenceGenome
from evomerge.types import Dimension, Genome

FORMER_WINNER = "former winner"
"""The label of the reference that is another run's winner; no source can have it."""


@dataclass(frozen=True)
class PathModel:
    """A model whose layers a path uses: its reference in recipes, the elements of each of its layers, and of all that
    is outside of them."""

    reference: str
    layers: tuple[int, ...]
    outside: int


@dataclass(frozen=True)
class PathModels:
    """The models of a space of paths.

    Attributes:
        models: by name, in the order of the path.
        writers: parts of the names of the tensors that write into the residual stream; none where scales are not exact.
        inexact: why they are not.
        winner: the documents that make the model `winner`, if there is one.
    """

    models: Mapping[str, PathModel]
    writers: tuple[str, ...] = ()
    inexact: str = ""
    winner: tuple[Document, ...] = ()


@dataclass(frozen=True)
class Models:
    """The facts about the checkpoints that recipes hold.

    Attributes:
        base, sources: portable references.
        layers: the number of layers.
        dtype: of the output.
        tokenizer: the policy, where vocabularies have to be brought together.
        chat_template: "auto", or a Jinja text; None: that of the model that gives the tokenizer.
        tensors: the base's floating-point tensors, in the order of the model, with the layer whose values each takes
            (`genes.Axes`).
        tied: whether the base's head is its embeddings.
        shapes: the shapes of `tensors`.
        uneven: whether some of them lack tensors that others store (`checkpoints.layouts.uneven`).
        path: of a space of paths, the models whose layers it uses.
        trajectories: of the sources that are averages, the references of their checkpoints, oldest first.
    """

    base: str
    sources: Mapping[str, str]
    layers: int
    dtype: str
    tokenizer: TokenizerPolicy | None = None
    chat_template: str | None = "auto"
    tensors: Mapping[str, int] = field(default_factory=dict)
    tied: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    uneven: bool = False
    path: PathModels | None = None
    trajectories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class SearchSpace(ABC):
    """The search space of one study: its dimensions, and the recipe of each genome."""

    dimensions: tuple[Dimension, ...]

    def __init__(self, spec: SpaceSpec, models: Models) -> None:
        self.spec, self.models = spec, models

    @property
    def banded(self) -> bool:
        """Whether weights are per band."""
        return False

    def factored(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """The shapes of the matrices whose deltas are factored, and in how many directions, one for each source."""
        return iter(())

    @property
    def start(self) -> Genome:
        """The genome of every gene's `init`."""
        return {d.key: d.tidy(d.init) for d in self.dimensions}

    @property
    @abstractmethod
    def reference_genomes(self) -> dict[str, ReferenceGenome]:
        """The genomes of well-known models, by label, as far as the space holds them (`space.reference_genomes`)."""

    @abstractmethod
    def recipe(self, genome: Genome) -> Recipe:
        """The recipe of a genome."""

    @abstractmethod
    def parent(self, reference: str) -> Recipe:
        """A checkpoint as it is."""

    def references(self) -> dict[str, Recipe]:
        """The recipes of what a study scores first, by label."""
        models = {BASE: self.models.base, **self.models.sources}
        return {name: self.parent(model) for name, model in models.items()}

    @abstractmethod
    def outline(self) -> Recipe:
        """A recipe of a candidate's form, from which tokenizer and configuration are known."""

    def largest(self) -> Recipe:
        """A recipe whose weights take as much memory as any candidate's that are written."""
        return self.outline()

    def stack(self) -> Recipe | None:
        """A stack of all layers that candidates are stacked of, whatever its depth; None where weights are merged."""
        return None

    def facts(self) -> dict[str, str]:
        """What a dry run says of the space beside the number of its dimensions."""
        return {}

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
            tokenizer=self.models.tokenizer,
            chat_template=self.models.chat_template if name is None else None,
            name=name,
            seed=int(self.spec.optimizer.get("seed", 0)) if METHODS[method].stochastic else 0,
        )


def joined(slices: Sequence[Slice]) -> list[Slice]:
    """Joins neighbouring slices that continue each other with equal parameters."""
    joined: list[Slice] = []
    for following in slices:
        if joined and _continues(joined[-1], following):
            inputs = [
                Input(a.model, (a.layers[0], b.layers[1]), a.parameters)
                for a, b in zip(joined[-1].inputs, following.inputs, strict=True)
                if a.layers and b.layers
            ]
            joined[-1] = Slice(tuple(inputs), following.parameters)
        else:
            joined.append(following)
    return joined


def _continues(first: Slice, second: Slice) -> bool:
    return first.parameters == second.parameters and all(
        a.model == b.model and a.parameters == b.parameters and a.layers and b.layers and a.layers[1] == b.layers[0]
        for a, b in zip(first.inputs, second.inputs, strict=True)
    )
