"""A recipe: a complete, executable merge description, in the words of mergekit's YAML.

Parameter values keep mergekit's forms: a scalar; a list of numbers (a gradient across the slice's layers); or a
list of ``{filter, value}`` entries, of which the first whose filter is absent, "*" or a substring of the tensor's
name wins (mergekit, docs/merge_methods and `mergekit.config`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from evomerge.errors import Where

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Input:
    """One model of a slice: a reference (a path, a hub id ``name[@revision]``, or the name of an earlier document),
    its layers [start, end) (None: all of them), and its own parameters."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: Parameters = field(default_factory=dict)
    where: Where = field(default=Where(), compare=False)


@dataclass(frozen=True)
class Slice:
    """Layers that are merged together; the slices of a document stack to the output's layers."""

    inputs: tuple[Input, ...]
    parameters: Parameters = field(default_factory=dict)
    where: Where = field(default=Where(), compare=False)


@dataclass(frozen=True)
class Document:
    """One merge. `name` is set on all documents but the last: later documents use it as a model.

    `whole` tells that the document was written with `models` (one slice over all layers). `seed` selects the
    random masks of DARE; mergekit ignores the key.
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    parameters: Parameters = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | None = None
    chat_template: str | None = None
    name: str | None = None
    seed: int = 0
    where: Where = field(default=Where(), compare=False)

    @property
    def whole(self) -> bool:
        return len(self.slices) == 1 and all(i.layers is None for i in self.slices[0].inputs)


@dataclass(frozen=True)
class Recipe:
    """The documents of a recipe, in order; the last one's output is the merged model."""

    documents: tuple[Document, ...]

    @property
    def output(self) -> Document:
        return self.documents[-1]

    @cached_property
    def id(self) -> str:
        """sha256 (hex) of the canonical JSON: sorted keys, no spaces, numbers as the shortest float64 text."""
        return hashlib.sha256(canonical(to_data(self)).encode()).hexdigest()

    def models(self) -> list[str]:
        """The references of all checkpoints that the recipe reads, in the order in which they first stand."""
        stages = {d.name for d in self.documents if d.name}
        found: dict[str, None] = {}
        for document in self.documents:
            for reference in _references(document):
                if reference not in stages:
                    found.setdefault(reference)
        return list(found)


def _references(document: Document) -> list[str]:
    listed = [i.model for s in document.slices for i in s.inputs]
    return [document.base, *listed] if document.base else listed


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces, in which equal numbers have equal text (1 and 1.0 alike)."""
    return json.dumps(_plain(data), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) < 2**53:
        return int(value)
    return value


def to_data(recipe: Recipe) -> list[dict[str, Any]]:
    """The recipe as the mappings that mergekit's YAML documents hold."""
    return [_document_data(d) for d in recipe.documents]


def _document_data(document: Document) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if document.name:
        data["name"] = document.name
    data["merge_method"] = document.method
    if document.base:
        data["base_model"] = document.base
    if document.whole:
        data["models"] = [_input_data(i) for i in document.slices[0].inputs]
    else:
        data["slices"] = [_slice_data(s) for s in document.slices]
    parameters = dict(document.parameters)
    if document.whole:
        parameters = {**parameters, **document.slices[0].parameters}
    if parameters:
        data["parameters"] = parameters
    for key in ("dtype", "out_dtype", "tokenizer_source", "chat_template"):
        if getattr(document, key) is not None:
            data[key] = getattr(document, key)
    if document.seed:
        data["random_seed"] = document.seed
    return data


def _slice_data(piece: Slice) -> dict[str, Any]:
    data: dict[str, Any] = {"sources": [_input_data(i) for i in piece.inputs]}
    if piece.parameters:
        data["parameters"] = dict(piece.parameters)
    return data


def _input_data(source: Input) -> dict[str, Any]:
    data: dict[str, Any] = {"model": source.model}
    if source.layers is not None:
        data["layer_range"] = list(source.layers)
    if source.parameters:
        data["parameters"] = dict(source.parameters)
    return data
