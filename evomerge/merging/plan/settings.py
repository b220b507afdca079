"""Looks up the values of a method's parameters for one tensor, and checks their kinds and ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from evomerge.errors import InputError, Where
from evomerge.files.nodes import interval
from evomerge.recipe.bands import Bands
from evomerge.recipe.parameters import Levels
from evomerge.recipe.recipe import Input
from evomerge.registry import BAND_ARITHMETIC, METHODS, Parameter

Value = float | bool | Bands


class Settings:
    """Looks up the `settings` of a document's tensors: once for all of a layer and shape, unless they are told apart by
    their names. A layer may have hundreds of experts."""

    def __init__(self) -> None:
        self._filtered: dict[int, bool] = {}
        self._known: dict[tuple[int, float, tuple[int, ...]], dict[str, Any]] = {}

    def of(
        self, levels: Levels, members: Sequence[tuple[Input, str]], tensor: str, t: float, shape: tuple[int, ...]
    ) -> dict[str, Any]:
        """As `settings`. `levels` has the same members for all tensors, and outlives this object."""
        if id(levels) not in self._filtered:
            self._filtered[id(levels)] = levels.filtered(source for source, _ in members)
        if self._filtered[id(levels)]:
            return settings(levels, members, tensor, t, shape)
        key = id(levels), t, shape
        if key not in self._known:
            self._known[key] = settings(levels, members, tensor, t, shape)
        return self._known[key]


def settings(
    levels: Levels, members: Sequence[tuple[Input, str]], tensor: str, t: float, shape: Sequence[int]
) -> dict[str, Any]:
    """Every parameter of the document's method by name: a tuple with one value for each member if it is a parameter of
    the sources, else one value.

    Args:
        members: the merged sources, each with the tensor's name in it.
        tensor: the output's name.
        t: the tensor's depth in its slice, from 0 to 1.
        shape: the output's.

    Raises:
        InputError: a value is missing, of another kind, out of its range, or does not go with the others or the shape.
    """
    name = levels.document.method
    method = METHODS[name]
    shared = {p.name: _of_merge(levels, p, tensor, t) for p in method.parameters if p.scope == "tensor"}
    by_source = [_of_source(levels, source, inner, tensor, t) for source, inner in members]
    for (source, _), values in zip(members, by_source, strict=True):
        for parameter, value in values.items():
            if isinstance(value, Bands):
                _check_bands(value, shape, f"{tensor} of {source.model}", levels.place(parameter, source))
    check = getattr(method, "check", None)
    for (source, _), values in zip(members, by_source, strict=True):
        problem = check({**shared, **values}) if check else None
        if problem:
            raise InputError(f"{name} of {source.model}, {tensor}: {problem}", "change the values", source.where)
    listed = {p.name: tuple(values[p.name] for values in by_source) for p in method.parameters if p.scope == "source"}
    return {p.name: listed[p.name] if p.scope == "source" else shared[p.name] for p in method.parameters}


def _check_bands(bands: Bands, shape: Sequence[int], owner: str, where: Where) -> None:
    """InputError where the tensor has no such bands."""
    if len(shape) != 2:
        problem = f"{owner} is no matrix (its shape is {list(shape)}) and has no bands"
        raise InputError(problem, "give it one number, by a filter entry", where)
    try:
        bands.sizes_in(min(shape))
    except ValueError as error:
        mend = "let the sizes sum to the directions, or leave them out" if bands.sizes else "give fewer bands"
        if bands.top is not None:
            mend = "leave out top and the rest's number, or give a smaller top"
        raise InputError(f"{owner}: {error}", mend, where) from None


def _of_merge(levels: Levels, parameter: Parameter, tensor: str, t: float) -> Value:
    """The value of a parameter of the whole merge."""
    value = levels.of_tensor(parameter.name, tensor, t, parameter.kind)
    return _legal(value, parameter, levels.document.method, tensor, lambda: levels.place(parameter.name))


def _of_source(levels: Levels, source: Input, inner: str, tensor: str, t: float) -> Mapping[str, Value]:
    """The values of one source. `inner` is the tensor's name in it."""
    owner, values = f"{levels.document.method} of {source.model}", dict[str, Value]()
    for parameter in METHODS[levels.document.method].parameters:
        if parameter.scope == "source":
            value = levels.of_source(source, parameter.name, inner, t, parameter.kind)
            where = partial(levels.place, parameter.name, source)
            values[parameter.name] = _legal(value, parameter, owner, tensor, where)
    return values


def _legal(value: Any, parameter: Parameter, owner: str, tensor: str, where: Callable[[], Where]) -> Value:
    """The value as the parameter's kind, or its default. `owner`, `where`: the method or source, for messages."""
    if value is None:
        if parameter.default is None:
            problem = f"{owner} has no {parameter.name} for {tensor}"
            raise InputError(problem, f"give {parameter.name}, or a filter entry without filter", where())
        return parameter.default
    if isinstance(value, Bands):
        if not parameter.banded:
            problem = f"{owner}: {parameter.name} takes no bands"
            raise InputError(problem, f"give a number, or use merge_method: {BAND_ARITHMETIC}", where())
        return value
    if parameter.kind is bool:
        if value not in (0, 1):
            raise InputError(
                f"{owner}: {parameter.name} is {value!r}, not true or false", "write true or false", where()
            )
        return bool(value)
    number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{owner}: {parameter.name} is {value!r}, not a number", "give a number", where())
    if parameter.kind is int and number != int(number):
        raise InputError(f"{owner}: {parameter.name} is {number:g}, not a whole number", "give a whole number", where())
    number = _within(number, parameter, owner, tensor, where)
    return int(number) if parameter.kind is int else number


def _within(number: float, parameter: Parameter, owner: str, tensor: str, where: Callable[[], Where]) -> float:
    """The number, in the parameter's range. Two ranges bound a search only (mergekit 0.1.5): `t` goes beyond the ends
    of a path, and a share above 1 keeps all, as 1 does."""
    if parameter.name == "t":
        return number
    if parameter.name in ("density", "select_topk"):
        number = min(number, parameter.high)
    if not parameter.low <= number <= parameter.high:
        problem = (
            f"{owner}: {parameter.name} is {number:g} for {tensor}, outside {interval(parameter.low, parameter.high)}"
        )
        raise InputError(problem, "give a number inside that range", where())
    return number
