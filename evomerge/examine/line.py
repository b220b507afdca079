"""The straight line between two models. Each point is a recipe, so that it can be merged, scored and exported."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evomerge.errors import InputError
from evomerge.evaluator.target import Target, check_tokens
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.materialize import as_it_is
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.recipe.relocated import as_stage
from evomerge.study.observer import Observer

_START, _END = "start of the line", "end of the line"


@dataclass(frozen=True)
class Line:
    """``(1 - t) start + t end``, each tensor computed in float32 and rounded once to `dtype`. The end gives
    configuration and tokenizer. The points 0 and 1 are the models themselves, bit for bit."""

    start: Recipe
    end: Recipe
    dtype: str

    def at(self, t: float) -> Recipe:
        """Returns the recipe of one point; t below 0 or above 1 lies beyond the models."""
        if t in (0.0, 1.0):
            return _in_dtype(self.end if t else self.start, self.dtype)
        (before, first), (after, last) = _staged(self.start, _START), _staged(self.end, _END)
        inputs = Input(last, parameters={"weight": t}), Input(first, parameters={"weight": 1.0 - t})
        sum_ = Document("linear", (Slice(inputs, {"normalize": False}),), out_dtype=self.dtype)
        return Recipe((*before, *after, sum_))


def line_between(start: Target, end: Target, observer: Observer) -> tuple[Line, MergePlan]:
    """Returns the line from `start` to `end` and the plan of its middle, which reads all checkpoints of both.

    Raises:
        InputError: the two do not have the same tensors and tokens.
    """
    if start.is_merge:
        check_tokens(start.name, start.planned.vocabulary, end)
        for checkpoint in start.planned.checkpoints:
            if end.headers.open(checkpoint.reference, checkpoint.where).resolved() != checkpoint.resolved():
                problem = f"{checkpoint.reference} of {start.name} is another model than in the other recipe"
                raise InputError(problem, "write absolute paths", checkpoint.where)
        recipe = start.recipe
    else:
        recipe = end.beside(start.name)
    if start.dtype != end.dtype:
        observer.warn(f"{start.name} is in {start.dtype}; it is scored in {end.dtype}, as {end.name} is")
    kinds = [str(target.planned.config.get("model_type")) for target in (start, end)]
    if kinds[0] != kinds[1]:
        problem = (
            f"{start.name} is a {kinds[0]} model, {end.name} a {kinds[1]} model: no line leads from one to the other"
        )
        raise InputError(problem, "give two models of one architecture")
    line = Line(recipe, end.recipe, end.dtype)
    return line, plan(line.at(0.5), end.headers.open)


def _in_dtype(recipe: Recipe, dtype: str) -> Recipe:
    *before, output = recipe.documents
    return Recipe((*before, replace(output, out_dtype=dtype)))


def _staged(recipe: Recipe, name: str) -> tuple[tuple[Document, ...], str]:
    """Returns the documents that make a recipe's model, and its name there: `name`. A checkpoint needs no document; its
    name is its reference."""
    first = recipe.models()[0]
    if recipe == as_it_is(first, recipe.output.out_dtype or ""):
        return (), first
    return as_stage(recipe, name, ": "), name
