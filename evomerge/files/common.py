"""Reads values that both input files share: models, paths, spans of time."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from evomerge.errors import InputError, Where
from evomerge.escape import quoted
from evomerge.files.keys import MODEL, SOURCE
from evomerge.files.nodes import Node
from evomerge.files.objects import ModelRef
from evomerge.safety.paths import absolute, is_folder

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_SPAN = re.compile(r"^\s*(\d+(?:\.\d+)?(?:e[-+]?\d+)?)\s*([smhd])\s*$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN_MEND = "write for example 90s, 20m or 4h"
LONGEST_SPAN = 1e9
"""Seconds: thirty years."""


def read_source(node: Node) -> ModelRef:
    """Reads a source: a checkpoint, as `read_model` does, or ``{path, revision, align}``. `align` is true or false, or
    the path of a permutation specification."""
    if not isinstance(node.value, dict):
        return read_model(node)
    node.declared(SOURCE)
    model = read_model(Node({key: child for key, child in node.value.items() if key != "align"}, node.where))
    align = node.value.get("align")
    if align is None or align.value is False:
        return model
    if not isinstance(align.value, bool | str):
        align.fail(f"is {align.shown()}, neither true nor a file", "write true, or the path of a specification")
    return replace(model, align=True, specification=resolve(align) if isinstance(align.value, str) else None)


def read_model(node: Node) -> ModelRef:
    """Reads a checkpoint: a path relative to the file, a hub id ``org/name[@revision]``, or ``{path, revision}``.
    A LoRA adapter follows its model's path or id after a plus sign."""
    if isinstance(node.value, dict):
        parts = node.declared(MODEL)
        model = read_model(parts["path"])
        if "revision" not in parts:
            return model
        if model.local:
            parts["revision"].fail("a folder has no revision", "remove it, or give a hub id as the path")
        return ModelRef(model.path, parts["revision"].text(), _placed(node))
    text = node.text()
    if "+" not in text or is_folder(resolve(node), node.where):
        return _model(node, text)
    whole, _, adapter = text.partition("+")
    return ModelRef(f"{_model(node, whole)}+{_model(node, adapter)}", None, _placed(node))


def _model(node: Node, text: str) -> ModelRef:
    name, _, revision = text.partition("@")
    folder = resolve(node, text)
    # An existing folder wins over a hub id of the same spelling, as in transformers; folders may have an @.
    if _HUB_ID.match(name) and not name.endswith(".gguf") and not is_folder(folder, node.where):
        return ModelRef(name, revision or None, _placed(node))
    return ModelRef(str(folder), None, _placed(node))


def _placed(node: Node) -> Where:
    """Where a model is named, with the folder at which its path starts."""
    return replace(node.where, folder=start_of(node))


def resolve(node: Node, text: str | None = None) -> Path:
    """Returns the absolute path that a node (or `text` in its place) names. A relative path starts at the folder of the
    node's file."""
    named = node.text() if text is None else text
    if any(not c.isprintable() for c in named):
        node.fail(f"{quoted(named, 80)} holds characters that no path has", "check the path")
    return absolute(named, start_of(node), node.where)


def start_of(node: Node) -> Path:
    """The folder at which relative paths of a node start."""
    file = node.where.file
    return node.where.folder or (file.absolute().parent if isinstance(file, Path) else Path.cwd())


def read_seconds(node: Node) -> float:
    """Reads a span of time such as ``90s``, ``20m``, ``4h``, ``2d``, or a number of seconds."""
    if isinstance(node.value, bool) or not isinstance(node.value, str | int | float):
        node.fail(f"is {node.shown()}, not a span of time", _SPAN_MEND)
    return parse_seconds(str(node.value), node.where)


def parse_seconds(text: str, where: Where) -> float:
    match = _SPAN.match(text) or _SPAN.match(f"{text}s")
    seconds = float(match.group(1)) * _SECONDS[match.group(2)] if match else 0.0
    if not 0 < seconds <= LONGEST_SPAN:
        raise InputError(f"{quoted(text, 80)} is not a span of time", _SPAN_MEND, where)
    return seconds


def index(node: Node) -> dict[str, Where]:
    """Returns dotted key -> where it stands, for every key below `node`."""
    places: dict[str, Where] = {}
    children = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(node.value, dict | list):
        for child in children:
            if child.where.key:
                places[child.where.key] = child.where
            places.update(index(child))
    return places
