"""Finds the stored tensors that an adapter's names mean. PEFT names a tensor by its place in a model in memory, and the
files of a base may have other names for it. They are tried in this order:

1. The name itself.
2. A name that differs by a prefix: the base was stored with or without its head.
3. A name that differs by the words around a language model: ``language_model.model.layers`` in files of transformers 4
   is ``model.language_model.layers`` in memory since version 5.
4. transformers' own conversion mapping, which renames stored tensors as it loads them, and stacks those of experts to
   one parameter: each of them is a part of it then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

_AROUND = ("model", "language_model", "module", "_orig_mod", "_fsdp_wrapped_module")
_STACKED = ((("MergeModulelist", 0),), (("MergeModulelist", 0), ("Concatenate", 1)))
"""The operations, with their dimensions, that make a parameter [experts, rows, columns] of the matrices of experts."""


@dataclass(frozen=True)
class Part:
    """A stored tensor as a part of a parameter [experts, rows, columns]. `expert`: whose it is; None if it has all of
    them. `rows`: the first of its rows, and the one behind its last."""

    stored: str
    expert: int | None
    rows: tuple[int, int]


@dataclass(frozen=True)
class Parameter:
    """A parameter in memory. `shape`: as its parts are stored; `turned`: in memory, rows and columns may be
    exchanged."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    turned: bool = False


class Shaped(Protocol):
    """What has a shape, such as a stored tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class ParameterNames:
    """The names that a base's tensors have in memory."""

    def __init__(self, stored: Mapping[str, Shaped], config: Mapping[str, Any]) -> None:
        self._stored, self._config = stored, config

    def find(self, name: str) -> str | None:
        """The stored name of a tensor; None if there is none, or several may be meant."""
        if name in self._stored:
            return name
        close = [s for s in self._stored if name.endswith(f".{s}") or s.endswith(f".{name}")]
        if len(close) == 1:
            return close[0]
        same = self._plain.get(_plain(name), [])
        if not same:
            same = [stored for stored, converter, _ in self._loaded.get(_plain(name), []) if converter is None]
        return same[0] if len(same) == 1 else None

    def parameters(self, module: str) -> dict[str, Parameter]:
        """The parameters of a module itself (not of modules in it), by name. None of them where a conversion is
        unknown."""
        start, found = f"{_plain(module)}.", dict[str, Parameter | None]()
        for name, stored in self._plain.items():
            if name.startswith(start) and "." not in name.removeprefix(start) and len(stored) == 1:
                found[name.removeprefix(start)] = self._whole(stored[0])
        for name, loaded in self._loaded.items():
            if name.startswith(start) and "." not in name.removeprefix(start):
                found[name.removeprefix(start)] = self._parameter(loaded)
        return {name: parameter for name, parameter in found.items() if parameter is not None}

    def stacked(self) -> dict[str, Parameter]:
        """The parameters [experts, rows, columns] that are made of several stored matrices, by their names in
        memory."""
        found = {}
        for loaded in self._loaded.values():
            parameter = self._parameter(loaded) if loaded[0][1] is not None else None
            if parameter is not None and parameter.parts[0].expert is not None:
                found[self.loaded(loaded[0][0])] = parameter
        return found

    def loaded(self, stored: str) -> str:
        """The name in memory of a tensor with the name `stored`, whether there is one or not."""
        from transformers.core_model_loading import rename_source_key

        name: str = rename_source_key(stored, *self._steps)[0]
        return name

    def _whole(self, stored: str, turned: bool = False) -> Parameter:
        """The parameter that is one stored tensor."""
        shape = self._stored[stored].shape
        return Parameter(shape, (Part(stored, None, (0, shape[-2] if len(shape) > 1 else 0)),), turned)

    def _parameter(self, loaded: list[tuple[str, Any, str]]) -> Parameter | None:
        """The parameter that stored tensors are loaded into."""
        converter = loaded[0][1]
        operations = converter.operations if converter is not None else []
        chain = tuple((type(operation).__name__, getattr(operation, "dim", None)) for operation in operations)
        if chain in ((), (("Transpose", None),)):
            return self._whole(loaded[0][0], turned=bool(chain)) if len(loaded) == 1 else None
        if chain not in _STACKED or any(other is not converter for _, other, _ in loaded):
            return None
        # The loader takes the tensors of each pattern in the order of their numbers, and joins them in the patterns'.
        parts, first, counts, columns = list[Part](), 0, set[int](), set[int]()
        for pattern in converter.source_patterns:
            names = sorted((name for name, _, other in loaded if other == pattern), key=_numbers)
            shapes = {self._stored[name].shape for name in names}
            if len(shapes) != 1 or len(shape := next(iter(shapes))) != 2:
                return None
            end = first + shape[0]
            parts += [Part(name, expert, (first, end)) for expert, name in enumerate(names)]
            first, counts, columns = end, counts | {len(names)}, columns | {shape[1]}
        return Parameter((*counts, first, *columns), tuple(parts)) if len(counts) == len(columns) == 1 else None

    @cached_property
    def _plain(self) -> Mapping[str, list[str]]:
        """Stored names, by themselves without the words around a language model."""
        found: dict[str, list[str]] = {}
        for name in self._stored:
            found.setdefault(_plain(name), []).append(name)
        return found

    @cached_property
    def _loaded(self) -> Mapping[str, list[tuple[str, Any, str]]]:
        """Stored names with the converter that takes them and its pattern, by their names in memory without the words
        around a language model. Only names that transformers changes."""
        found: dict[str, list[tuple[str, Any, str]]] = {}
        renamings, converters = self._steps
        if not renamings and not converters:
            return found
        from transformers.core_model_loading import rename_source_key

        for name in self._stored:
            loaded, pattern = rename_source_key(name, renamings, converters)
            converter = next((c for c in converters if pattern in c.source_patterns), None)
            if loaded != name or converter is not None:
                found.setdefault(_plain(loaded), []).append((name, converter, pattern or ""))
        return found

    @cached_property
    def _steps(self) -> tuple[list[Any], list[Any]]:
        """The renamings and the converters of transformers for the configuration."""
        mapping = [entry for kind in _kinds(self._config) for entry in _conversions(kind)]
        if not mapping:
            return [], []
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        return renamings, [entry for entry in mapping if isinstance(entry, WeightConverter)]


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _AROUND)


def _kinds(config: Mapping[str, Any]) -> Iterator[str]:
    """The model types of a configuration and of its parts."""
    if isinstance(config.get("model_type"), str):
        yield config["model_type"]
    for value in config.values():
        if isinstance(value, dict):
            yield from _kinds(value)


def _conversions(kind: str) -> list[Any]:
    """How transformers loads checkpoints of a model type."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    except ImportError:  # an early version 5
        return []
    return list(get_checkpoint_conversion_mapping(kind) or [])


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
