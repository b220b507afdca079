"""`evomerge.merge_tensors`: merges tensors in memory, with the kernels and to the bits of a recipe's merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import InputError, TrialError, suggestion
from evomerge.merging.plan.alignment import promoted
from evomerge.merging.plan.jobs import COPY, MergeJob, Read
from evomerge.merging.plan.settings import settings
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import execute
from evomerge.recipe.parameters import Levels
from evomerge.recipe.recipe import Document, Input, Slice
from evomerge.registry import METHODS, Method

Tensors = Mapping[str, Tensor]
_BASE = "base/"
"""What the base is called among the sources; it cannot be one's name."""


def merge_tensors(
    base: Tensors | None,
    sources: Mapping[str, Tensors] | Sequence[Tensors],
    method: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Merges state dicts. Nothing is written, and what is given stays as it is.

    Args:
        base: name -> tensor of the base; None for methods that need none. Methods to which a base is a model like
            others (`linear`) do not read it.
        sources: the same of each source, by name or in order. All have the base's names and shapes.
        method: of a recipe, such as "ties".
        parameters: of the method. One of the sources is a number for all of them, a list with one for each, or a
            mapping from their names; any other is a number or a flag. A number may be a list of filters as in a recipe.
        dtype: of the result, in which inputs are taken; default: that of the inputs.
        seed: of random masks.
        device: where the arithmetic is done, and the result is.

    Raises:
        InputError: names, shapes, method or parameters are wrong, or the result is not finite.
    """
    if not isinstance(sources, Mapping | Sequence) or isinstance(sources, str):
        raise InputError("the sources are neither a mapping nor a list", "give name -> state dict")
    if not isinstance(parameters, Mapping | None):
        raise InputError("the parameters are no mapping", "give name -> value")
    _check_place(dtype, device)
    declared = _declared(method, base, len(sources))
    named = dict(sources) if isinstance(sources, Mapping) else {str(i): s for i, s in enumerate(sources)}
    _check(base, named)
    levels, inputs = _levels(method, declared, named, dict(parameters or {}))
    read = base is not None and declared.base != "ordinary"
    bank = _Given({**named, **({_BASE: base} if base is not None and read else {})})
    first, merged = next(iter(named.values())), dict[str, Tensor]()
    for name, tensor in first.items():
        operands = tuple(Read(source, name) for source in named)
        reference = Read(_BASE, name) if read else None
        shape = tuple(tensor.shape)
        if not tensor.is_floating_point():
            kind = _name(tensor.dtype)
            job = MergeJob(name, COPY, operands, None, {}, kind, kind, shape)
        else:
            values = settings(levels, [(source, name) for source in inputs], name, 0.0, shape)
            kind = promoted([_name(t[name].dtype) for t in bank.given.values()]) if dtype is None else _name(dtype)
            job = MergeJob(name, method, operands, reference, values, kind, kind, shape, seed)
        try:
            merged[name] = execute(job, bank, device)
        except TrialError as error:
            raise InputError(str(error), "change the parameters") from None
    return merged


class _Given(SourceBank):
    """A bank of tensors that lie in memory."""

    def __init__(self, given: Mapping[str, Tensors]) -> None:
        super().__init__(keep=False)
        self.given = given

    def tensor(self, ref: str, name: str) -> Tensor:
        return self.given[ref][name].detach()


def _declared(method: str, base: Tensors | None, count: int) -> Method:
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}", suggestion(method, METHODS))
    declared = METHODS[method]
    least, most = declared.sources
    if not least <= count <= most:
        number = f"{least}" if least == most else f"at least {least}" if count < least else f"at most {most:g}"
        raise InputError(f"{method} merges {number} sources, not {count}", "give it as many")
    if base is None and declared.base in ("subtracted", "endpoint"):
        raise InputError(f"{method} needs a base", "give the tensors of the common ancestor")
    return declared


def _check_place(dtype: Any, device: str) -> None:
    if not isinstance(dtype, torch.dtype | None) or (dtype is not None and not dtype.is_floating_point):
        raise InputError(f"{dtype!r} is no dtype of numbers with a fraction", "give torch.bfloat16, for example")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(f"there is no device {device!r} ({first})", "give cpu, for example") from None


def _check(base: Tensors | None, sources: Mapping[str, Tensors]) -> None:
    """InputError unless all are finite tensors of the same names and shapes."""
    models = {**({"the base": base} if base is not None else {}), **sources}
    for label, tensors in models.items():
        _check_tensors(label, tensors)
    lead, first = next(iter(models.items()))
    for label, tensors in list(models.items())[1:]:
        if odd := sorted(first.keys() ^ tensors.keys()):
            has, lacks = (lead, label) if odd[0] in first else (label, lead)
            raise InputError(f"{odd[0]!r} is in {has} and not in {lacks}", "give all models the same tensors")
        for name, tensor in tensors.items():
            if tensor.shape != first[name].shape:
                shapes = f"{[*tensor.shape]} in {label}, {[*first[name].shape]} in {lead}"
                raise InputError(f"{name!r} is {shapes}", "merge models of one architecture")


def _check_tensors(label: str, tensors: Any) -> None:
    if not isinstance(tensors, Mapping):
        raise InputError(f"{label} is no state dict", "give a mapping from names to tensors")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name!r} of {label} is no tensor", "give tensors of torch")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{name!r} of {label} holds NaN or Inf", "repair the model")


def _levels(
    method: str, declared: Method, sources: Mapping[str, Tensors], parameters: dict[str, Any]
) -> tuple[Levels, list[Input]]:
    """The parameters as those of a recipe."""
    known = {parameter.name: parameter for parameter in declared.parameters}
    for name in parameters:
        if name not in known:
            raise InputError(f"{method} has no parameter {name!r}", suggestion(name, known))
        _check_value(name, parameters[name])
    of_source = {name: value for name, value in parameters.items() if known[name].scope == "source"}
    shared = {name: value for name, value in parameters.items() if name not in of_source}
    split = {name: _by_source(name, value, list(sources)) for name, value in of_source.items()}
    inputs = [Input(source, parameters={name: v[source] for name, v in split.items()}) for source in sources]
    slice_ = Slice(tuple(inputs))
    return Levels(Document(method, (slice_,), parameters=shared), slice_), inputs


def _check_value(name: str, value: Any) -> None:
    """InputError where a value, or one in it, has no form that a recipe's may have."""
    if isinstance(value, Mapping):
        if "filter" in value and not {"value", "bands"} & {*value}:
            raise InputError(f"{name} has a filter entry without a value", "give {'filter': ..., 'value': ...}")
        for key, inner in value.items():
            if not (key == "filter" and isinstance(inner, str)):
                _check_value(name, inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if not value or any(inner is None for inner in value):
            raise InputError(f"{name} is a list with nothing in it, or with None", "give numbers")
        for inner in value:
            if isinstance(inner, Mapping) and not {"value", "bands"} & {*inner}:
                raise InputError(f"{name} has an entry without a value", "give {'filter': ..., 'value': ...}")
            _check_value(name, inner)
    elif value is not None:
        try:
            float("no" if isinstance(value, str) else value)
        except (TypeError, ValueError):
            raise InputError(f"{name} is {value!r}, not a number", "give a number, or True or False") from None


def _by_source(name: str, value: Any, sources: list[str]) -> dict[str, Any]:
    if isinstance(value, Mapping) and "value" not in value:
        if odd := sorted({*value} ^ {*sources}):
            raise InputError(f"{name} and the sources differ in {odd[0]!r}", "give one value for each source")
        return dict(value)
    if isinstance(value, Sequence) and not all(isinstance(entry, Mapping) for entry in value):
        if len(value) != len(sources):
            raise InputError(f"{name} has {len(value)} values for {len(sources)} sources", "give one for each")
        return dict(zip(sources, value, strict=True))
    return dict.fromkeys(sources, value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
