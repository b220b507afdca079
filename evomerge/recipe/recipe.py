"""A recipe: a complete, executable merge description, in the words of mergekit's YAML.

Parameter values keep mergekit's forms: a scalar; a list of numbers (a gradient across the slice's layers); or a
list of ``{filter, value}`` entries. The first entry whose filter is absent, "*" or a substring of the tensor's name
wins (mergekit, docs/merge_methods and `mergekit.config`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from evomerge.checkpoints.references import check_reference
from evomerge.errors import Where

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Input:
    """One model of a slice: a reference (a path or hub id ``name[@revision]``, with ``+adapter[@revision]`` behind it
    where a LoRA adapter is to be merged in; or the name of an earlier document), its layers [start, end) (None: all
    of them), and its own parameters."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: Parameters = field(default_factory=dict)
    where: Where = field(default=Where(), compare=False)


@dataclass(frozen=True)
class Slice:
    """Layers that are merged together; the slices of a module stack to the output's layers. `base` replaces the
    document's for this slice."""

    inputs: tuple[Input, ...]
    parameters: Parameters = field(default_factory=dict)
    where: Where = field(default=Where(), compare=False)
    base: str | None = None

    @property
    def whole(self) -> bool:
        """Whether it was written with `models`: all layers of every model."""
        return all(i.layers is None for i in self.inputs)


@dataclass(frozen=True)
class Module:
    """One layer stack of a model with several, such as a decoder beside a vision tower, and the tensors that belong to
    it."""

    name: str
    slices: tuple[Slice, ...]
    parameters: Parameters = field(default_factory=dict)
    where: Where = field(default=Where(), compare=False)

    @property
    def whole(self) -> bool:
        return len(self.slices) == 1 and self.slices[0].whole


@dataclass(frozen=True)
class TokenRule:
    """Where the embedding of `token` comes from in models that lack it; with `force`, in all models.

    Attributes:
        model: the model that gives the row; None: the usual rule decides, or `zero`.
        row: the token of `model`, by text or by id, that gives the row; None: the same token.
        zero: whether the row is zeros.
    """

    token: str
    model: str | None = None
    row: str | int | None = None
    zero: bool = False
    force: bool = False
    where: Where = field(default=Where(), compare=False)


@dataclass(frozen=True)
class TokenizerPolicy:
    """The output's vocabulary: "base", "union" (the base's, and what the other models add), or a model's reference;
    and the tokens that get a rule of their own, which are added if the vocabulary lacks them."""

    source: str = "union"
    tokens: tuple[TokenRule, ...] = ()
    pad_to_multiple_of: int | None = None
    where: Where = field(default=Where(), compare=False)


@dataclass(frozen=True)
class Document:
    """One merge, of `slices` or of `modules`. `name` is set on all documents but the last: later documents use it as
    a model. `seed` selects random masks (DARE, DELLA); mergekit ignores the key. `fused_experts`: whether the experts
    of a layer are merged as one tensor; else each matrix by itself. `core`: whether the changes of LoRA adapters are
    merged in Core Space; `core_rank`: so many of its directions are kept (None: all).
    """

    method: str
    slices: tuple[Slice, ...] = ()
    base: str | None = None
    parameters: Parameters = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerPolicy | None = None
    chat_template: str | None = None
    name: str | None = None
    seed: int = 0
    where: Where = field(default=Where(), compare=False)
    modules: tuple[Module, ...] = ()
    fused_experts: bool = False
    core: bool = False
    core_rank: int | None = None

    @property
    def whole(self) -> bool:
        """Whether it was written with `models`: one slice over all layers."""
        return len(self.slices) == 1 and self.slices[0].whole

    @property
    def all_slices(self) -> tuple[Slice, ...]:
        """The slices of all modules."""
        return (*self.slices, *(slice_ for module in self.modules for slice_ in module.slices))


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
        return list(self.places())

    def places(self) -> dict[str, Where]:
        """The same, each with the place where it first stands."""
        stages, places = {d.name for d in self.documents if d.name}, dict[str, Where]()
        for document in self.documents:
            for reference, where in _references(document):
                if reference not in stages:
                    places.setdefault(reference, where)
        return places

    def check_places(self) -> None:
        """InputError where a checkpoint is neither a folder nor a possible hub id. Nothing is opened or fetched."""
        for reference, where in self.places().items():
            check_reference(reference, where)


def _references(document: Document) -> list[tuple[str, Where]]:
    """The references of all models that a document names, checkpoints and earlier documents, each with its place."""
    bases = [(document.base, document.where), *((slice_.base, slice_.where) for slice_ in document.all_slices)]
    listed = [(i.model, i.where) for slice_ in document.all_slices for i in slice_.inputs]
    return [*((base, where) for base, where in bases if base), *listed]


def base_of(recipe: Recipe) -> str | None:
    """Returns the base checkpoint of the last document that has a checkpoint as its base; None where none has."""
    models = recipe.models()
    return next((d.base for d in reversed(recipe.documents) if d.base in models), None)


def alone(merge: Document, model: str, dtype: str) -> Recipe:
    """The recipe of one model of a merge, in `dtype` and in the merge's vocabulary. That depends on all the models, so
    the others are listed with weight 0."""
    models = Recipe((merge,)).models()
    inputs = tuple(Input(name, parameters={"weight": float(name == model)}) for name in models)
    return Recipe((Document("linear", (Slice(inputs),), merge.base, out_dtype=dtype, tokenizer=merge.tokenizer),))


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
    if document.modules:
        data["modules"] = {module.name: _module_data(module) for module in document.modules}
    elif document.whole:
        data["models"] = [_input_data(i) for i in document.slices[0].inputs]
    else:
        data["slices"] = [_slice_data(s) for s in document.slices]
    parameters = dict(document.parameters)
    if document.whole:
        parameters = {**parameters, **document.slices[0].parameters}
    if parameters:
        data["parameters"] = parameters
    data |= {k: v for k in ("dtype", "out_dtype") if (v := getattr(document, k)) is not None}
    if document.tokenizer is not None:
        data |= _tokenizer_data(document.tokenizer)
    if document.chat_template is not None:
        data["chat_template"] = document.chat_template
    if document.fused_experts:
        data["experts"] = "fused"
    if document.core:
        data["adapters"] = "core"
    if document.core_rank is not None:
        data["core_rank"] = document.core_rank
    if document.seed:
        data["random_seed"] = document.seed
    return data


def _module_data(module: Module) -> dict[str, Any]:
    """A module written with `models` keeps its slice's parameters as its own: the same precedence, one level less."""
    data: dict[str, Any] = {}
    parameters = dict(module.parameters)
    if module.whole:
        data["models"] = [_input_data(i) for i in module.slices[0].inputs]
        parameters |= module.slices[0].parameters
    else:
        data["slices"] = [_slice_data(s) for s in module.slices]
    if parameters:
        data["parameters"] = parameters
    return data


def _tokenizer_data(policy: TokenizerPolicy) -> dict[str, Any]:
    """The policy under mergekit's keys: `tokenizer_source` if it is a source only, else `tokenizer`."""
    if not policy.tokens and policy.pad_to_multiple_of is None:
        return {"tokenizer_source": policy.source}
    data: dict[str, Any] = {"source": policy.source}
    if policy.tokens:
        data["tokens"] = {rule.token: _rule_data(rule) for rule in policy.tokens}
    if policy.pad_to_multiple_of is not None:
        data["pad_to_multiple_of"] = policy.pad_to_multiple_of
    return {"tokenizer": data}


def _rule_data(rule: TokenRule) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if rule.zero:
        data["source"] = {"kind": "zero"}
    elif rule.row is not None:
        key = "token_id" if isinstance(rule.row, int) else "token"
        data["source"] = {"kind": "model_token", "model": rule.model, key: rule.row}
    elif rule.model is not None:
        data["source"] = rule.model
    if rule.force:
        data["force"] = True
    return data


def _slice_data(slice_: Slice) -> dict[str, Any]:
    data: dict[str, Any] = {"sources": [_input_data(i) for i in slice_.inputs]}
    if slice_.base:
        data["base_model"] = slice_.base
    if slice_.parameters:
        data["parameters"] = dict(slice_.parameters)
    return data


def _input_data(source: Input) -> dict[str, Any]:
    data: dict[str, Any] = {"model": source.model}
    if source.layers is not None:
        data["layer_range"] = list(source.layers)
    if source.parameters:
        data["parameters"] = dict(source.parameters)
    return data
