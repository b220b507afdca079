"""The models that a recipe reads: checkpoints, and the outputs of its earlier documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.modules import find_modules
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.merging.plan.jobs import MergePlan, Model, Read, TensorRef
from evomerge.recipe.recipe import Recipe

_MODELS: WeakKeyDictionary[Checkpoint, Model] = WeakKeyDictionary()
"""Of the checkpoints that are open: the next candidate reads the same ones."""


def stage_recipe(recipe: Recipe, number: int) -> Recipe:
    """The recipe that ends with the document of that number."""
    return Recipe((*recipe.documents[:number], replace(recipe.documents[number], name=None)))


def held_stage(recipe: Recipe, held: Mapping[str, MergePlan]) -> tuple[int, tuple[str, str] | None]:
    """Where planning begins, as the documents before are in memory: the number of the first document that is left, and
    the name of the last one before it, with the id of its recipe. ``(0, None)`` where none is."""
    for number in range(len(recipe.documents) - 1, -1, -1) if held else ():
        name, left = recipe.documents[number].name, Recipe(recipe.documents[number + 1 :])
        if name is None or (key := stage_recipe(recipe, number).id) not in held:
            continue
        if not {d.name for d in recipe.documents[:number]} & set(left.models()):
            return number + 1, (name, key)
    return 0, None


def stored_model(checkpoint: Checkpoint) -> Model:
    if checkpoint in _MODELS:
        return _MODELS[checkpoint]
    key = checkpoint.resolved()
    tensors = {name: TensorRef(Read(key, name), info.shape, info.dtype) for name, info in checkpoint.tensors.items()}
    modules = find_modules(tensors, checkpoint.config, checkpoint.stack)
    vocabulary = Vocabulary.of(checkpoint.tokenizer_path)
    model = _MODELS[checkpoint] = Model(
        reference=key,
        config=checkpoint.config,
        modules=modules,
        tied=checkpoint.tied,
        embedding=checkpoint.embedding,
        tensors=tensors,
        vocabulary=vocabulary,
    )
    return model


def staged_model(name: str, stage: MergePlan, held: str | None = None) -> Model:
    """An earlier document as a model. `held`: what its tensors are read under, where they are in memory."""
    tensors = {
        n: TensorRef(job if held is None else Read(held, n), job.shape, job.out) for n, job in stage.jobs.items()
    }
    return Model(
        reference=name,
        config=stage.config,
        modules=stage.modules,
        tied=stage.tied,
        embedding=stage.embedding,
        tensors=tensors,
        vocabulary=stage.vocabulary,
    )
