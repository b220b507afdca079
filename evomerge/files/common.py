"""Readers that both input files share."""

from __future__ import annotations

import re
from pathlib import Path

from evomerge.errors import Where
from evomerge.files.nodes import Node
from evomerge.files.objects import ModelRef

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_SPAN = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([smhd])\s*$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def read_model(node: Node) -> ModelRef:
    """A checkpoint: a path relative to the file, a hub id ``org/name[@revision]``, or ``{path, revision}``."""
    if isinstance(node.value, dict):
        parts = node.mapping(["path"], ["revision"])
        text = parts["path"].text()
        revision = parts["revision"].text() if "revision" in parts else None
    else:
        text, _, tail = node.text().partition("@")
        revision = tail or None
    folder = resolve(text, node.where.file)
    # An existing folder wins over a hub id of the same spelling, as in transformers.
    if not folder.is_dir() and _HUB_ID.match(text):
        return ModelRef(text, revision, node.where)
    return ModelRef(str(folder), None, node.where)


def resolve(text: str, file: Path | str | None) -> Path:
    """`text` as an absolute path; relative ones start at the folder of `file`."""
    path = Path(text).expanduser()
    if not path.is_absolute() and isinstance(file, Path):
        path = file.absolute().parent / path
    return Path(path.absolute().as_posix()).resolve()


def read_seconds(node: Node) -> float:
    """A span of time such as ``90s``, ``20m``, ``4h``, ``2d``, or a number of seconds."""
    return parse_seconds(str(node.value), node.where)


def parse_seconds(text: str, where: Where) -> float:
    match = _SPAN.match(text) or _SPAN.match(f"{text}s")
    if not match or float(match.group(1)) <= 0:
        Node(text, where).fail(f"{text!r} is not a span of time", "write for example 90s, 20m or 4h")
    return float(match.group(1)) * _SECONDS[match.group(2)]


def index(node: Node) -> dict[str, Where]:
    """Dotted key -> where it stands, for every key below `node`."""
    found: dict[str, Where] = {}
    children = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(node.value, dict | list):
        for child in children:
            if child.where.key:
                found[child.where.key] = child.where
            found.update(index(child))
    return found
