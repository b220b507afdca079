"""A whole recipe as one model of another one: its documents under names of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.recipe.mergekit import recipe_from_data
from evomerge.recipe.recipe import Document, Recipe, to_data

_REFERENCES = ("name", "model", "base_model", "source", "tokenizer_source")
"""The keys of a recipe whose values can be documents' names."""


def as_stage(recipe: Recipe, name: str, separator: str) -> tuple[Document, ...]:
    """The documents of a recipe whose output is the model `name`. The names of the others begin with it, so that two
    recipes fit into one."""
    names = {d.name: f"{name}{separator}{d.name}" for d in recipe.documents if d.name}
    data = _renamed(to_data(recipe), names)
    data[-1]["name"] = name
    return recipe_from_data(data).documents


def _renamed(data: Any, names: Mapping[str, str]) -> Any:
    if isinstance(data, list):
        return [_renamed(entry, names) for entry in data]
    if not isinstance(data, dict):
        return data
    return {
        key: names.get(value, value) if key in _REFERENCES and isinstance(value, str) else _renamed(value, names)
        for key, value in data.items()
    }
