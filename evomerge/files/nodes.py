"""The values of an input file as a tree. Each knows its file, line and key; its readers say what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NoReturn

from evomerge.errors import InputError, Where, suggestion
from evomerge.escape import quoted, shortened
from evomerge.files.keys import Keys, optional, required

_LARGEST_INTEGER = 2**63 - 1
MOST_LAYERS = 10_000
"""Layers of a model. The deepest published ones have some 200; work and memory grow with the number."""


class Node:
    """One YAML value and where it stands. `value` is a scalar, a list of nodes, or a dict of nodes."""

    def __init__(self, value: Any, where: Where) -> None:
        self.value, self.where = value, where

    def fail(self, problem: str, mend: str = "", key: str | None = None) -> NoReturn:
        where = Where(self.where.file, self.where.line, join(self.where.key, key)) if key else self.where
        raise InputError(problem, mend, where)

    @property
    def data(self) -> Any:
        """The value as plain Python objects."""
        if isinstance(self.value, dict):
            return {k: n.data for k, n in self.value.items()}
        if isinstance(self.value, list):
            return [n.data for n in self.value]
        return self.value

    def shown(self) -> str:
        """The value for a message: what it is, where it is long."""
        if self.value is None:
            return "empty"
        whole = repr(self.data)
        kind = "a list" if isinstance(self.value, list) else "a mapping" if isinstance(self.value, dict) else "a text"
        return whole if len(whole) <= 100 else f"{kind} ({shortened(whole, 60)})"

    # Readers: each returns a plain value or raises InputError.

    def mapping(
        self, required: Iterable[str] = (), optional: Iterable[str] | None = None, example: str = ""
    ) -> dict[str, Node]:
        """Reads a mapping. With `optional`, only those and the required keys are legal. `example`: how it is written,
        for the message."""
        if not isinstance(self.value, dict):
            written = f", for example {example}" if example else ""
            self.fail(f"is {self.shown()}, not a mapping", f"write it as `key: value` lines{written}")
        if optional is not None:
            legal = list(dict.fromkeys([*required, *optional]))
            for key, node in self.value.items():
                if key not in legal:
                    raise InputError(f"unknown key {quoted(key, 80)}", suggestion(key, legal), node.where)
        for key in required:
            if key not in self.value:
                self.fail(f"has no {key!r}", f"add a line `{key}: ...`")
        return self.value

    def declared(self, keys: Keys, example: str = "") -> dict[str, Node]:
        """Reads a mapping whose legal keys are declared."""
        return self.mapping(required(keys), optional(keys), example)

    def sequence(self) -> list[Node]:
        if not isinstance(self.value, list):
            self.fail(f"is {self.shown()}, not a list", "write it as [a, b, ...]")
        return self.value

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            self.fail(f"is {self.shown()}, not a text", "give a text, in quotes where YAML reads it otherwise")
        return self.value

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            self.fail(f"is {self.shown()}, not true or false", "write true or false")
        return self.value

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Reads a finite number in [low, high]. A number in quotes is one, as for mergekit."""
        number = as_number(self.value)
        if number is None or not math.isfinite(number):
            self.fail(f"is {self.shown()}, not a number", "give a number, such as 0.5 or 1e-3")
        if not low <= number <= high:
            self.fail(f"{self.shown()} is outside {interval(low, high)}", "give a number inside that range")
        return number

    def integer(self, low: float = -math.inf, high: float = math.inf) -> int:
        """Reads a whole number in [low, high] of 64 bits at most; it may be written as 4.0 or 1e6."""
        if as_number(self.value) is None:
            self.fail(f"is {self.shown()}, not a number", "give a whole number, such as 4")
        number = self.number(low, high)
        if abs(number) > _LARGEST_INTEGER:
            self.fail(f"{self.shown()} is larger than any number that is meant", "give a smaller one")
        if number != int(number):
            self.fail(f"is {self.shown()}, not a whole number", "give a whole number, such as 4")
        return self.value if isinstance(self.value, int) else int(number)

    def one_of(self, names: Iterable[str], what: str) -> str:
        """Reads one of the legal names. `what` says what they name ("optimizer")."""
        legal = list(names)
        if not isinstance(self.value, str):
            self.fail(f"is {self.shown()}, not the name of {_article(what)}", suggestion("", legal, limit=30))
        if self.value not in legal:
            self.fail(f"unknown {what} {self.shown()}", suggestion(self.value, legal, limit=30))
        return self.value


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def interval(low: float, high: float) -> str:
    left = "(-inf" if low == -math.inf else f"[{_shown(low)}"
    right = "inf)" if high == math.inf else f"{_shown(high)}]"
    return f"{left}, {right}"


def _shown(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def join(prefix: str | None, key: object) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def from_data(data: Any, where: Where) -> Node:
    """Returns plain objects as a tree, so that data from a store is read by the same readers as a file."""
    if isinstance(data, dict):
        return Node(
            {k: from_data(v, Where(where.file, where.line, join(where.key, k))) for k, v in data.items()}, where
        )
    if isinstance(data, list | tuple):
        return Node(
            [from_data(v, Where(where.file, where.line, join(where.key, i))) for i, v in enumerate(data)], where
        )
    return Node(data, where)
