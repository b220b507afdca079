"""The straight line between two models, point by point as recipes: what merges and exports can do, the line can."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from evomerge.merging.resident.materialize import as_it_is
from evomerge.recipe.mergekit import recipe_from_data
from evomerge.recipe.recipe import Document, Input, Recipe, Slice, to_data

_START, _END = "start of the line", "end of the line"
_REFERENCES = ("name", "model", "base_model", "source", "tokenizer_source")
"""The keys of a recipe whose values can be documents' names."""


@dataclass(frozen=True)
class Line:
    """``(1 - t) start + t end``, each tensor computed in float32 and rounded once to `dtype`. The end gives
    configuration and tokenizer. The points 0 and 1 are the models themselves, bit for bit."""

    start: Recipe
    end: Recipe
    dtype: str

    def at(self, t: float) -> Recipe:
        """The recipe of one point; t below 0 or above 1 lies beyond the models."""
        if t in (0.0, 1.0):
            return _in_dtype(self.end if t else self.start, self.dtype)
        (before, first), (after, last) = _staged(self.start, _START), _staged(self.end, _END)
        inputs = Input(last, parameters={"weight": t}), Input(first, parameters={"weight": 1.0 - t})
        sum_ = Document("linear", (Slice(inputs, {"normalize": False}),), out_dtype=self.dtype)
        return Recipe((*before, *after, sum_))


def _in_dtype(recipe: Recipe, dtype: str) -> Recipe:
    *before, output = recipe.documents
    return Recipe((*before, replace(output, out_dtype=dtype)))


def _staged(recipe: Recipe, name: str) -> tuple[tuple[Document, ...], str]:
    """The documents that make a recipe's model under `name`; a checkpoint needs none, and goes by its reference."""
    first = recipe.models()[0]
    if recipe == as_it_is(first, recipe.output.out_dtype or ""):
        return (), first
    names = {d.name: f"{name}: {d.name}" for d in recipe.documents if d.name}
    data = _renamed(to_data(recipe), names)
    data[-1]["name"] = name
    return recipe_from_data(data).documents, name


def _renamed(data: Any, names: dict[str, str]) -> Any:
    """The recipe's data with its documents under other names, so that two recipes can stand side by side."""
    if isinstance(data, list):
        return [_renamed(each, names) for each in data]
    if not isinstance(data, dict):
        return data
    return {
        key: names.get(value, value) if key in _REFERENCES and isinstance(value, str) else _renamed(value, names)
        for key, value in data.items()
    }
