"""The models of a search space, opened by their headers: what is wrong with them is found before a weight is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS
from evomerge.checkpoints.layouts.residual import writers
from evomerge.checkpoints.layouts.unread import unread as not_read
from evomerge.checkpoints.preflight import (
    TokenChanges,
    check_configured,
    check_family,
    check_stackable,
    layer_shapes,
    tensor_notes,
    token_changes,
)
from evomerge.checkpoints.structure import Place
from evomerge.checkpoints.token_ids import reordered
from evomerge.checkpoints.tokenizer import chat_template
from evomerge.errors import InputError, Where, suggestion
from evomerge.files.module_groups import READY_MADE, with_filters
from evomerge.files.objects import WINNER, Dataflow, FitnessSpec, ModelRef, SpaceSpec
from evomerge.recipe.mergekit import parse_recipe
from evomerge.recipe.recipe import Document, Recipe, TokenizerPolicy
from evomerge.recipe.relocated import as_stage
from evomerge.safety.templates import check_template
from evomerge.space.base import Models, PathModel, PathModels, SearchSpace
from evomerge.space.build import space_of


@dataclass(frozen=True)
class OpenModels:
    """Base and sources of a search space (headers only), the space over them, and how their tokens change. `earlier`:
    the checkpoints of trajectories but the newest, as ``run/ckpt-20``."""

    base: Checkpoint
    sources: dict[str, Checkpoint]
    space: SearchSpace
    tokens: TokenChanges
    earlier: dict[str, Checkpoint] = field(default_factory=dict)

    @property
    def checkpoints(self) -> dict[str, Checkpoint]:
        return {"base": self.base, **self.sources, **self.earlier}

    @property
    def reordered(self) -> list[str]:
        """A line for every pair of models that have different tokens under equal ids."""
        return (
            [f"{pair}; rows are matched by token" for pair in reordered(self.checkpoints)]
            if self.tokens.changes
            else []
        )

    @property
    def tensor_notes(self) -> list[str]:
        """Lines on what not all models store, where they are merged."""
        return [] if self.space.spec.stacks else tensor_notes(self.base, {**self.sources, **self.earlier})

    @property
    def quantized(self) -> list[str]:
        """A line for every model that is stored quantized: how, and as what it is read."""
        return [f"{name}: {c.quantization}" for name, c in self.checkpoints.items() if c.quantization is not None]


def open_models(spec: SpaceSpec, fitness: FitnessSpec) -> OpenModels:
    """Opens base and sources and checks that they can be merged. Raises InputError."""
    base = _open(spec.base)
    sources = {name: _open(ref, base) for name, ref in spec.sources.items()}
    refs = _earlier(spec)
    earlier = {name: _open(ref, base) for name, ref in refs.items()}
    merged = {**sources, **earlier}
    where = _where_models_stand(spec, refs)
    if fitness.model is None:
        check_configured(base, where("base"))
    if spec.stacks:
        check_stackable({"base": base, **sources}, where)
    else:
        check_family(base, merged, where)
    tokens = token_changes(base, merged, spec.tokenizer, where)
    _check_distinct({"base": base, **merged}, where)
    _check_adapters(spec, base, merged, where)
    ready_made = [name for name, text in spec.modules.items() if text == READY_MADE]
    spec = with_filters(spec, base.tensors)
    _check_modules(spec, base, {*ready_made, *spec.freeze.modules})
    space = space_of(spec, space_models(spec, base, sources, tokens, earlier))
    return OpenModels(base, sources, space, tokens, earlier)


def _earlier(spec: SpaceSpec) -> dict[str, ModelRef]:
    """The checkpoints of trajectories but the newest, by the names of their folders where these differ."""
    named: dict[str, ModelRef] = {}
    for source, trajectory in spec.trajectories.items():
        refs = trajectory.checkpoints
        names = [Path(ref.path).name for ref in refs]
        distinct = len(set(names)) == len(names)
        named |= {f"{source}/{n if distinct else ref}": ref for n, ref in zip(names[:-1], refs, strict=False)}
    return named


def _check_distinct(checkpoints: Mapping[str, Checkpoint], where: Callable[[str], Where]) -> None:
    seen: dict[str, str] = {}
    for name, checkpoint in checkpoints.items():
        other = seen.setdefault(checkpoint.resolved(), name)
        if other != name:
            raise InputError(f"{name} is the same checkpoint as {other}", "list each model once", where(name))


def _check_adapters(
    spec: SpaceSpec, base: Checkpoint, sources: Mapping[str, Checkpoint], where: Callable[[str], Where]
) -> None:
    """InputError where a source of a space of adapters is none of the base."""
    other = next((n for n, source in sources.items() if not source.adapted_to(base)), None) if spec.core else None
    if other is not None:
        problem = f"{other} is no LoRA adapter of {base.reference}, and `adapters: core` merges these alone"
        raise InputError(problem, "leave it out, or write adapters: full", where(other))


def _check_modules(spec: SpaceSpec, base: Checkpoint, needed: Collection[str]) -> None:
    """InputError where a module's text is in no name, or where one of `needed` gets no tensor."""
    of_first = {next((name for name, text in spec.modules.items() if text in tensor), "") for tensor in base.tensors}
    for name in needed:
        if name not in of_first and any(spec.modules[name] in tensor for tensor in base.tensors):
            problem = f"the module {name} is empty: all of its tensors belong to modules before it"
            raise InputError(problem, "name it before them", spec.at("modules"))
    for name, text in spec.modules.items():
        if not any(text in tensor for tensor in base.tensors):
            parts = {part for tensor in base.tensors for part in tensor.split(".") if not part.isdigit()}
            problem = f"no tensor of the base has {text!r} in its name"
            raise InputError(problem, suggestion(text, parts), spec.at(f"modules.{name}"))


def _where_models_stand(spec: SpaceSpec, earlier: Mapping[str, ModelRef]) -> Callable[[str], Where]:
    """Maps a model's name, or another key, to its place in the space file."""
    models = {"base": spec.base.where, **{name: ref.where for name, ref in {**spec.sources, **earlier}.items()}}
    return lambda name: models.get(name) or spec.at(name)


def _open(ref: ModelRef, base: Checkpoint | None = None) -> Checkpoint:
    return Checkpoint.open(str(ref.copy or ref), ref.where, base)


def space_models(
    spec: SpaceSpec,
    base: Checkpoint,
    sources: Mapping[str, Checkpoint],
    tokens: TokenChanges,
    earlier: Mapping[str, Checkpoint] = MappingProxyType({}),
) -> Models:
    """Describes the opened checkpoints as the space needs them. `earlier`: those of trajectories, but the newest."""
    references = {name: checkpoint.resolved() for name, checkpoint in sources.items()}
    policy = None
    if tokens.changes or spec.tokenizer in references:
        named = {"base": base.resolved(), **references} if spec.stacks else references
        policy = TokenizerPolicy(named.get(spec.tokenizer, spec.tokenizer), where=spec.at("tokenizer"))
    if spec.stacks and tokens.changes and spec.tokenizer == "union":
        problem = "the embeddings of a path are its first model's, which lacks tokens of other models"
        raise InputError(problem, "write base, or the first model's name", spec.at("tokenizer"))
    return Models(
        base=base.resolved(),
        sources=references,
        layers=base.layers,
        dtype=spec.dtype or base.dtype,
        tokenizer=policy,
        chat_template=_chat_template(spec, {"base": base, **sources}),
        trajectories={
            name: (*(c.resolved() for key, c in earlier.items() if key.partition("/")[0] == name), references[name])
            for name in spec.trajectories
        },
        tensors=_layer_of_each_tensor(base),
        tied=base.tied,
        shapes={name: tuple(info.shape) for name, info in base.tensors.items()},
        uneven=not spec.stacks and bool(tensor_notes(base, {**sources, **earlier})),
        path=None if spec.dataflow is None else _path_models(spec, spec.dataflow, {"base": base, **sources}),
    )


def _path_models(spec: SpaceSpec, flow: Dataflow, models: Mapping[str, Checkpoint]) -> PathModels:
    """Describes the models of a path; where blocks are merged, all are like the base."""
    made, winner = (None, ()) if spec.winner is None else _winner(spec.winner, models, spec.at("path"))
    names = ("base",) if flow.both else flow.path
    path = {name: made if made and name == WINNER else _path_model(models[name]) for name in names}
    shapes = layer_shapes(models["base"])
    found = [writers(models["base"].config, layer) for layer in shapes]
    inexact = next((reason for _, reason in found if reason), "")
    parts = tuple(dict.fromkeys(part for names, _ in found for part in names))
    return PathModels(path, () if inexact else parts, inexact, winner)


def _winner(text: str, models: Mapping[str, Checkpoint], where: Where) -> tuple[PathModel, tuple[Document, ...]]:
    """Another run's winner as a model, and the documents that make it. InputError where it reads other models."""
    # torch takes a second to import.
    from evomerge.merging.plan.plan import plan

    recipe = parse_recipe(text, "the other run's winner")
    known = {checkpoint.resolved(): checkpoint for checkpoint in models.values()}
    for reference in recipe.models():
        if reference not in known:
            problem = f"the other run's winner reads {reference}, which is no model of this space"
            raise InputError(problem, "add it as a source; the path need not use it", where)
    *before, output = as_stage(recipe, WINNER, "-")
    documents = (*before, replace(output, chat_template=None))
    planned = plan(Recipe(documents), lambda reference, _: known[reference])
    layers = [0] * planned.stack.layers
    for name, job in planned.jobs.items():
        place = planned.stack.place(name)
        if isinstance(place, int):
            layers[place] += math.prod(job.shape)
    return PathModel(WINNER, tuple(layers), planned.elements - sum(layers)), documents


def _path_model(checkpoint: Checkpoint) -> PathModel:
    layers = tuple(sum(math.prod(shape) for shape in shapes.values()) for shapes in layer_shapes(checkpoint))
    return PathModel(checkpoint.resolved(), layers, sum(i.elements for i in checkpoint.tensors.values()) - sum(layers))


def _layer_of_each_tensor(base: Checkpoint) -> dict[str, int]:
    """Maps each floating-point tensor that the base's model reads, in the order of the model, to the layer whose values
    it takes: tensors before the layers take the first layer's, tensors behind them the last one's (mergekit's rule for
    slices)."""
    unread = not_read(base.config, base.tensors) or frozenset()
    ends: dict[Place, int] = {"before": -1, "after": base.layers}
    floats = [name for name, info in base.tensors.items() if info.dtype in FLOATS and name not in unread]
    places = {name: place if isinstance(place := base.stack.place(name), int) else ends[place] for name in floats}
    in_order = sorted(floats, key=places.__getitem__)
    return {name: min(max(places[name], 0), base.layers - 1) for name in in_order}


def _chat_template(spec: SpaceSpec, models: Mapping[str, Checkpoint]) -> str | None:
    """Returns "auto" or the text of the template, as mergekit knows no model's name there; None where it is that of the
    model that gives the tokenizer."""
    if spec.chat_template == "auto" and spec.stacks:
        return None  # as it would depend on the models that a path uses
    if spec.chat_template not in models:
        if spec.chat_template != "auto":
            check_template(spec.chat_template, str(spec.file), spec.at("chat_template"))
        return spec.chat_template
    template = chat_template(models[spec.chat_template])
    if template is None:
        problem, where = f"{spec.chat_template} has no chat template", spec.at("chat_template")
        raise InputError(problem, "use auto, another model, or a Jinja text", where)
    return template
