"""Reads the JSONL files of items for Python functions. Imports nothing heavy: they are read before a search, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where, suggestion
from evomerge.escape import shortened
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.safety.read import read_bytes
from evomerge.scoring.splits import Deal, deal_all, item_key


def read_items(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of a JSONL file. InputError, with the line, where a line is not a JSON object, and where the
    file is none that `safety.read` reads."""
    items = []
    try:
        lines = read_bytes(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 ({error.reason})", "write it in UTF-8", Where(path)) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            items.append(json_object(line, Where(path, number)))
    return items


def json_object(line: str, where: Where) -> dict[str, Any]:
    """The object of a line of JSON. InputError where it is none."""
    try:
        item = json.loads(line)
    except RecursionError:
        raise InputError("is not JSON (nested too deep)", "write one object a line", where) from None
    except ValueError as error:
        reason = shortened(getattr(error, "msg", error), 80)
        raise InputError(f"is not JSON ({reason})", "write one object a line", where) from None
    if not isinstance(item, dict):
        raise InputError("is not a JSON object", "write one object a line", where)
    return item


def cluster_names(spec: SliceSpec, items: Sequence[dict[str, Any]]) -> list[str]:
    """The content of each item's `cluster` field. InputError where an item has no such field."""
    field = str(spec.cluster)
    lacking = next((item for item in items if field not in item), None)
    if lacking is not None:
        problem = f"an item of {spec.data} has no field {field!r}"
        raise InputError(problem, suggestion(field, map(str, lacking)), spec.at("cluster"))
    return [str(item[field]) for item in items]


def deal_items(fitness: FitnessSpec, spec: SliceSpec, items: Sequence[dict[str, Any]]) -> Deal:
    """Deals the items to the splits. Slices over files of one name share the deal."""
    assert spec.data is not None
    keys = [item_key(item) for item in items]
    return deal_all({spec.data.name: keys}, fitness.split_seed, fitness.search, spec.items)
