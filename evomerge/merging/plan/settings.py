"""The values of a method's parameters for one tensor: looked up, made of the declared kind, held to their ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import InputError, Where
from evomerge.files.nodes import interval
from evomerge.recipe.parameters import Levels
from evomerge.recipe.recipe import Input
from evomerge.registry import METHODS, Parameter

Value = float | bool


def settings(levels: Levels, members: Sequence[tuple[Input, str]], tensor: str, t: float) -> dict[str, Any]:
    """Every parameter of the document's method: for those of a source a tuple with one value for each of `members` (the
    source and the tensor's name in it), for those of the merge one value.

    Raises:
        InputError: a value is missing, of another kind, out of its range, or does not go with the others.
    """
    name = levels.document.method
    method = METHODS[name]
    shared = {p.name: _shared(levels, p, tensor, t) for p in method.parameters if p.scope == "tensor"}
    own = [_own(levels, source, inner, tensor, t) for source, inner in members]
    check = getattr(method, "check", None)
    for (source, _), values in zip(members, own, strict=True):
        problem = check({**shared, **values}) if check else None
        if problem:
            raise InputError(f"{name} of {source.model}, {tensor}: {problem}", "change the values", source.where)
    listed = {p.name: tuple(values[p.name] for values in own) for p in method.parameters if p.scope == "source"}
    return {p.name: listed[p.name] if p.scope == "source" else shared[p.name] for p in method.parameters}


def _shared(levels: Levels, parameter: Parameter, tensor: str, t: float) -> Value:
    value = levels.of_tensor(parameter.name, tensor, t, parameter.kind)
    return _legal(value, parameter, levels.document.method, tensor, levels.place(parameter.name))


def _own(levels: Levels, source: Input, inner: str, tensor: str, t: float) -> Mapping[str, Value]:
    of, found = f"{levels.document.method} of {source.model}", dict[str, Value]()
    for parameter in METHODS[levels.document.method].parameters:
        if parameter.scope == "source":
            value = levels.of_source(source, parameter.name, inner, t, parameter.kind)
            found[parameter.name] = _legal(value, parameter, of, tensor, levels.place(parameter.name, source))
    return found


def _legal(value: Any, parameter: Parameter, of: str, tensor: str, where: Where) -> Value:
    """The value, or the default; a required one must be given."""
    if value is None:
        if parameter.default is None:
            problem = f"{of} has no {parameter.name} for {tensor}"
            raise InputError(problem, f"give {parameter.name}, or a filter entry without filter", where)
        return parameter.default
    if parameter.kind is bool:
        if value not in (0, 1):
            raise InputError(f"{of}: {parameter.name} is {value!r}, not true or false", "write true or false", where)
        return bool(value)
    number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{of}: {parameter.name} is {value!r}, not a number", "give a number", where)
    if parameter.kind is int and number != int(number):
        raise InputError(f"{of}: {parameter.name} is {number:g}, not a whole number", "give a whole number", where)
    number = _within(number, parameter, of, tensor, where)
    return int(number) if parameter.kind is int else number


def _within(number: float, parameter: Parameter, of: str, tensor: str, where: Where) -> float:
    """The number, in the parameter's range. Some ranges bound a search only: mergekit goes beyond the ends of a path
    (`t`), and a share above 1 keeps all, as 1 does."""
    if parameter.name == "t":
        return number
    if parameter.name in ("density", "select_topk"):
        number = min(number, parameter.high)
    if not parameter.low <= number <= parameter.high:
        problem = (
            f"{of}: {parameter.name} is {number:g} for {tensor}, outside {interval(parameter.low, parameter.high)}"
        )
        raise InputError(problem, "give a number inside that range", where)
    return number
