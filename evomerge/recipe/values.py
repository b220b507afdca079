"""Reads the values in a recipe's documents: parameter values, model references, dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import suggestion
from evomerge.files.keys import MODEL
from evomerge.files.nodes import Node
from evomerge.recipe.keys import BANDED, REFERENCE, VALUE
from evomerge.registry import METHODS

_PARAMETERS = {p.name for method in METHODS.values() for p in method.parameters} | {"int8_mask", "embed_slerp"}
"""Every parameter of mergekit's methods. One that the recipe's method does not take is ignored, as mergekit does; a
name that no method takes is a typo."""

_DTYPES = {"float": "float32", "half": "float16"} | {n: n for n in ("float64", "float32", "float16", "bfloat16")}
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def is_set(node: Node | None) -> bool:
    """Whether a key is there and not null."""
    return node is not None and node.value is not None


def text(node: Node | None) -> str | None:
    return node.text() if node is not None and node.value is not None else None


def dtype(node: Node | None) -> str | None:
    """A floating-point dtype by torch's name."""
    if node is None or node.value is None:
        return None
    name = node.text().removeprefix("torch.")
    if name not in _DTYPES:
        node.fail(f"unknown dtype {name!r}", suggestion(name, _DTYPES))
    return _DTYPES[name]


def reference(node: Node) -> str:
    """A model reference: ``path[@revision][+adapter[@revision]]``, or mergekit's mapping of the same parts."""
    if not isinstance(node.value, dict):
        return node.text()
    parts = node.declared(REFERENCE)
    adapter = f"+{_path(parts['lora'])}" if is_set(parts.get("lora")) else ""
    return _path(parts["model"]) + adapter


def _path(node: Node) -> str:
    if not isinstance(node.value, dict):
        return node.text()
    parts = node.declared(MODEL)
    revision = text(parts.get("revision"))
    return parts["path"].text() + (f"@{revision}" if revision else "")


class Located(dict[str, Any]):
    """Parameters with their places in the file."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        super().__init__({name: _value(node) for name, node in nodes.items()})
        self.places = {name: node.where for name, node in nodes.items()}


def parameters(node: Node | None) -> dict[str, Any]:
    """A block of method parameters."""
    return {} if node is None or node.value is None else Located(node.mapping((), _PARAMETERS))


def _value(node: Node) -> Any:
    """A scalar, a gradient, or filtered entries. The form is checked here, kind and range when a merge is planned."""
    if isinstance(node.value, dict):
        return [_entry(node)]
    if isinstance(node.value, list):
        if not node.value:
            node.fail("is an empty list", "give a number, a list of numbers, or entries of filter and value")
        if any(isinstance(child.value, dict) for child in node.value):
            return [_entry(child) for child in node.value]
        return tuple(_scalar(child) for child in node.value)
    return None if node.value is None else _scalar(node)


def _entry(node: Node) -> dict[str, Any]:
    banded = isinstance(node.value, dict) and "bands" in node.value
    parts = node.declared(BANDED if banded else VALUE)
    chosen = {"filter": text(parts["filter"])} if is_set(parts.get("filter")) else {}
    return {**chosen, **(_bands(parts) if banded else {"value": _value(parts["value"])})}


def _bands(parts: Mapping[str, Node]) -> dict[str, Any]:
    """The numbers of bands, how many directions each has, and of how many largest ones they are, in evomerge's own
    form. With a `top`, the last number is the rest's, which has no size."""
    data: dict[str, Any] = {"bands": [child.number() for child in parts["bands"].sequence()]}
    if not data["bands"]:
        parts["bands"].fail("is an empty list", "give a number for each band")
    count = len(data["bands"])
    if is_set(parts.get("top")):
        data["top"] = parts["top"].integer(1)
        count -= 1
        if not 0 < count <= data["top"]:
            problem = f"has {len(data['bands'])} numbers for the {data['top']} largest directions and the rest"
            parts["bands"].fail(problem, f"give from 2 to {data['top'] + 1}, the last one for the rest")
    if is_set(parts.get("sizes")):
        data["sizes"] = [child.integer(1) for child in parts["sizes"].sequence()]
        if len(data["sizes"]) != count:
            but = " but the last one, which is the rest's" if "top" in data else ""
            parts["sizes"].fail(f"has another length than bands{but}", f"give the directions of each band{but}")
        if sum(data["sizes"]) != data.get("top", sum(data["sizes"])):
            problem = f"sums to {sum(data['sizes'])} directions, and top is {data['top']}"
            parts["sizes"].fail(problem, "let the sizes sum to top")
    return data


def _scalar(node: Node) -> float | bool:
    if isinstance(node.value, bool):
        return node.value
    word = node.value.strip().lower() if isinstance(node.value, str) else ""
    return _FLAGS[word] if word in _FLAGS else node.number()
