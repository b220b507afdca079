"""A recipe whose models are called otherwise: by other paths, by names for a page that strangers read, or, as a part of
another recipe, by names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from evomerge.checkpoints.references import locate, split_adapter
from evomerge.errors import InputError, Where
from evomerge.recipe.recipe import Document, Module, Recipe, Slice, TokenizerPolicy, TokenRule

POLICIES = ("base", "union")
"""What `TokenizerPolicy.source` may be besides a reference."""


def references(recipe: Recipe) -> dict[str, Where]:
    """The references of all checkpoints that a recipe names, those of tokenizers too, each with the place where it
    first stands. A chat template may name one of them."""
    found = recipe.places()
    for document in recipe.documents:
        policy = document.tokenizer
        if policy is not None and policy.source not in POLICIES:
            found.setdefault(policy.source, policy.where)
    stages = {document.name for document in recipe.documents}
    return {reference: where for reference, where in found.items() if reference not in stages}


def relocated(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """The recipe with other references. `names`: reference -> what stands in its place."""
    stages = {document.name for document in recipe.documents if document.name}
    return Recipe(tuple(_document(d, {k: v for k, v in names.items() if k not in stages}) for d in recipe.documents))


def as_stage(recipe: Recipe, name: str, separator: str) -> tuple[Document, ...]:
    """The documents of a recipe whose output is the model `name`. The names of the others begin with it, so that two
    recipes fit into one."""
    names = {d.name: f"{name}{separator}{d.name}" for d in recipe.documents if d.name}
    *before, output = recipe.documents
    return (*(_staged(d, names, names.get(d.name or "")) for d in before), _staged(output, names, name))


def _staged(document: Document, names: Mapping[str, str], name: str | None) -> Document:
    # A chat template is a text, or a word that a document may also be called.
    return replace(_document(document, names), name=name, chat_template=document.chat_template)


def anchored(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths in place of those that start at its file, so that it means the same anywhere. What
    is neither a folder nor a possible hub id stays as it is."""
    places = references(recipe)
    return relocated(recipe, {reference: "+".join(located(reference, where)) for reference, where in places.items()})


def located(reference: str, where: Where) -> tuple[str, ...]:
    """The parts of a reference, a model and its adapter or file of weights, absolute where they are here. One that
    leads nowhere stays as it is."""
    try:
        parts = [part for part in split_adapter(reference, where) if part is not None]
        return tuple(part if Path(part).is_absolute() else str(locate(part, where) or part) for part in parts)
    except InputError:
        return (reference,)


def _document(document: Document, names: Mapping[str, str]) -> Document:
    template = document.chat_template
    return replace(
        document,
        base=_named(document.base, names),
        slices=_slices(document.slices, names),
        modules=tuple(_module(module, names) for module in document.modules),
        tokenizer=None if document.tokenizer is None else _policy(document.tokenizer, names),
        chat_template=_named(template, names),
    )


def _module(module: Module, names: Mapping[str, str]) -> Module:
    return replace(module, slices=_slices(module.slices, names))


def _slices(slices: tuple[Slice, ...], names: Mapping[str, str]) -> tuple[Slice, ...]:
    return tuple(
        replace(
            slice_,
            inputs=tuple(replace(i, model=names.get(i.model, i.model)) for i in slice_.inputs),
            base=_named(slice_.base, names),
        )
        for slice_ in slices
    )


def _policy(policy: TokenizerPolicy, names: Mapping[str, str]) -> TokenizerPolicy:
    source = policy.source if policy.source in POLICIES else names.get(policy.source, policy.source)
    return replace(policy, source=source, tokens=tuple(_rule(rule, names) for rule in policy.tokens))


def _rule(rule: TokenRule, names: Mapping[str, str]) -> TokenRule:
    return replace(rule, model=_named(rule.model, names))


def _named(reference: str | None, names: Mapping[str, str]) -> str | None:
    return None if reference is None else names.get(reference, reference)
