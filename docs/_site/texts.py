"""Texts of the code as Markdown: docstrings, tables."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path


def docstring(target: str) -> str:
    """The docstring of `module:name`."""
    module, _, name = target.partition(":")
    nodes = [n for n in _tree(module).body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
    return (ast.get_docstring(nodes[0]) if nodes else None) or ""


def lead(target: str) -> str:
    """The first paragraph of the docstring of the module of `module:name`."""
    return (ast.get_docstring(_tree(target.partition(":")[0])) or "").partition("\n\n")[0]


def method_names(module: str, prefix: str) -> list[str]:
    """The methods of a module's classes whose names begin so, without it."""
    parts = [part for node in _tree(module).body if isinstance(node, ast.ClassDef) for part in node.body]
    names = [part.name for part in parts if isinstance(part, ast.FunctionDef)]
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _tree(module: str) -> ast.Module:
    """A module as its file has it: importing it may take seconds."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text())


def prose(text: str) -> str:
    """A docstring without its sections of arguments and errors."""
    return linked(escaped(re.split(r"\n\n(?:Args|Raises|Returns|Attributes):\n", text)[0].replace("``", "`")))


def linked(text: str) -> str:
    """Text in which numbers of arXiv are links."""
    return re.sub(r"(?:arXiv:|https://arxiv\.org/abs/)(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def escaped(text: str) -> str:
    """Plain text as Markdown; what stands in backticks is code."""
    parts = re.split(r"(`[^`\n]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<*|\[\]])", r"\\\1", part) for part in parts)


def cell(text: str) -> str:
    """Markdown for a cell of a table."""
    return text.replace("|", r"\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(' '.join(value.split()) for value in line)} |\n" for line in lines)
