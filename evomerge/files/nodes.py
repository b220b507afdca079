"""Reads YAML as a tree. Each value knows its file, line and key, and its readers say what is wrong with it.

Only YAML's plain types are built (no tags, no Python objects); duplicate keys are errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from evomerge.errors import InputError, Where, suggestion


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
        return repr(self.data)

    # Readers: each returns a plain value or raises InputError.

    def mapping(self, required: Iterable[str] = (), optional: Iterable[str] | None = None) -> dict[str, Node]:
        """Reads a mapping. With `optional`, only those and the required keys are legal."""
        if not isinstance(self.value, dict):
            self.fail(f"is {self.shown()}, not a mapping", "write it as `key: value` lines")
        if optional is not None:
            legal = [*required, *optional]
            for key, node in self.value.items():
                if key not in legal:
                    raise InputError(f"unknown key {key!r}", suggestion(key, legal), node.where)
        for key in required:
            if key not in self.value:
                self.fail(f"has no {key!r}", f"add a line `{key}: ...`")
        return self.value

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
        """Reads a finite number in [low, high]. `1e-3`, which YAML 1.1 reads as a text, is a number here."""
        number = as_number(self.value)
        if number is None or not math.isfinite(number):
            self.fail(f"is {self.shown()}, not a number", "give a number")
        if not low <= number <= high:
            self.fail(f"{self.shown()} is outside {interval(low, high)}", "give a number inside that range")
        return number

    def integer(self, low: float = -math.inf, high: float = math.inf) -> int:
        number = self.number(low, high)
        if number != int(number):
            self.fail(f"is {self.shown()}, not a whole number", "give a whole number")
        return int(number)

    def one_of(self, names: Iterable[str], what: str) -> str:
        name = self.text()
        legal = list(names)
        if name not in legal:
            self.fail(f"unknown {what} {name!r}", suggestion(name, legal, limit=30))
        return name


def as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def interval(low: float, high: float) -> str:
    left = "(-inf" if low == -math.inf else f"[{low:g}"
    right = "inf)" if high == math.inf else f"{high:g}]"
    return f"{left}, {right}"


def join(prefix: str | None, key: object) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def load_documents(file: Path) -> list[Node]:
    """Reads all documents of a YAML file. InputError if it is missing, unreadable or not YAML."""
    return parse_documents(read_text(file), file)


def load(file: Path) -> Node:
    """Reads the one document of a YAML file."""
    documents = load_documents(file)
    if len(documents) != 1:
        raise InputError(f"holds {len(documents)} YAML documents, expected 1", "keep one", Where(file))
    return documents[0]


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such file", _sibling(file), Where(file)) from None
    except IsADirectoryError:
        raise InputError("is a folder, not a YAML file", "name the file in it", Where(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", "check the file", Where(file)) from None


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


def _sibling(file: Path) -> str:
    try:
        names = [p.name for p in file.parent.iterdir() if p.suffix in {".yaml", ".yml"}]
    except OSError:
        return f"the folder {file.parent} does not exist either"
    return suggestion(file.name, names) if names else "check the path"


def parse_documents(text: str, file: Path | str) -> list[Node]:
    try:
        loader = yaml.SafeLoader(text)
        try:
            return [_build(n, loader, file, None) for n in _compose_all(loader)]
        finally:
            loader.dispose()
    except RecursionError:
        raise InputError("is not valid YAML (it refers to itself)", "write the values out", Where(file)) from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"is not valid YAML ({problem})", "check that line", Where(file, line)) from None


def _compose_all(loader: yaml.SafeLoader) -> Iterator[yaml.Node]:
    while loader.check_node():
        node = loader.get_node()
        if node is not None:
            yield node


_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


def _build(node: yaml.Node, loader: yaml.SafeLoader, file: Path | str, key: str | None) -> Node:
    where = Where(file, node.start_mark.line + 1, key)
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN:
        raise InputError(f"is not valid YAML here: the tag {node.tag!r}", "write plain lists and mappings", where)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        built: dict[str, Node] = {}
        for key_node, value_node in node.value:
            name = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(name, str):
                problem = f"the key {key_node.value!r} reads as {name!r}"
                raise InputError(problem, "put it in quotes", Where(file, line, key))
            if name in built:
                raise InputError("stands twice", "keep one of them", Where(file, line, join(key, name)))
            child = _build(value_node, loader, file, join(key, name))
            child.where = Where(file, line, join(key, name))
            built[name] = child
        return Node(built, where)
    if isinstance(node, yaml.SequenceNode):
        return Node([_build(n, loader, file, join(key, i)) for i, n in enumerate(node.value)], where)
    return Node(loader.construct_object(node, deep=True), where)


def override(root: Node, setting: str, folder: Path | None = None) -> None:
    """Applies one ``dotted.key=value`` setting (the value is YAML) to a tree, creating the mappings on its way.
    Paths in it start at `folder`, by default the current one."""
    dotted, equals, text = setting.partition("=")
    where = Where("--set", None, dotted.strip() or None, folder)
    if not equals or not dotted.strip():
        raise InputError(f"{setting!r} has no `key=value`", "write for example --set budget.trials=50", where)
    parsed = parse_documents(text, "--set") or [Node(None, where)]
    target = root
    keys = dotted.strip().split(".")
    if keys[0] == "optimizer" and isinstance(root.value, dict):
        _spell_out(root.value, "optimizer", "name")
    for key in keys[:-1]:
        if not isinstance(target.value, dict):
            raise InputError("runs through a value that is not a mapping", "check the key", where)
        target = target.value.setdefault(key, Node({}, where))
    if not isinstance(target.value, dict):
        raise InputError("runs through a value that is not a mapping", "check the key", where)
    target.value[keys[-1]] = from_data(parsed[0].data, where)


def _spell_out(parent: dict[str, Node], key: str, name: str) -> None:
    """Writes the short form ``key: value`` as ``key: {name: value}``, so that a setting can go below `key`."""
    node = parent.get(key)
    if node is not None and isinstance(node.value, str):
        parent[key] = Node({name: node}, node.where)
