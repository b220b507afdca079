"""The keys of a search-space file that search the path of a token through the layers of its models."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from evomerge.files.keys import PATHS, SCALES
from evomerge.files.nodes import MOST_LAYERS, Node
from evomerge.files.objects import SCALE_FORMS, WINNER, Dataflow, GeneSpec, Scales

KINDS = ("weights", "dataflow", "both")
KEYS = tuple(PATHS)
"""What only a space of paths has, besides `space` itself."""

_FOREIGN: Mapping[str, Mapping[str, str]] = {
    "weights": dict.fromkeys(KEYS, "says how layers are stacked, and `space: weights` stacks none"),
    "dataflow": {
        "genes": "merges weights, and `space: dataflow` merges none",
        "fixed": "is of merge methods, and `space: dataflow` has none",
        "layers": "groups the values of genes, and `space: dataflow` has none",
        "interpolate": "is of the values of genes, and `space: dataflow` has none",
        "modules": "tells genes apart, and `space: dataflow` has none",
        "freeze": "keeps layers from being merged, and `space: dataflow` merges none",
        "adapters": "says how changes are merged, and `space: dataflow` merges none",
    },
    "both": {
        "layers": "groups layers, and in `space: both` the blocks do",
        "interpolate": "needs layers in their places, and blocks move",
        "freeze": "keeps layers in their places, and blocks move",
        "adapters": "needs layers in their places, and blocks move",
        "path": "orders the models of a path, and in `space: both` each block is a merge of all models",
        "repeats": "repeats slots, and `space: both` has blocks",
        "scales": "is of the hops between layers as they are, and `space: both` merges them",
    },
}
_MENDS = {"weights": "remove it, or write `space: dataflow`"}

_MOST_REPEATS, _MOST_BLOCKS = 100, 1_000
_BLOCKS = 4
_WHOLE = 1_000.0
"""A `max_parameters` above it is a number of parameters, below a multiple of the first model's."""


def read_kind(parts: Mapping[str, Node]) -> str:
    """What a space searches. InputError where the file has keys that mean nothing there."""
    kind = parts["space"].one_of(KINDS, "kind of space") if "space" in parts else "weights"
    for key, reason in _FOREIGN[kind].items():
        if key in parts:
            parts[key].fail(reason, _MENDS.get(kind, "remove it"))
    return kind


def read_dataflow(parts: Mapping[str, Node], kind: str, sources: Collection[str]) -> Dataflow | None:
    """The keys of a space of paths; None for one of weights. Raises InputError."""
    if kind == "weights":
        return None
    path = _path(parts["path"], sources) if "path" in parts else tuple(sources)
    blocks = parts["blocks"].integer(1, _MOST_BLOCKS) if "blocks" in parts else _BLOCKS if kind == "both" else None
    if blocks is not None and "repeats" in parts:
        parts["repeats"].fail("repeats slots, and `blocks` has none", "remove one of them")
    return Dataflow(
        both=kind == "both",
        path=path,
        repeats=parts["repeats"].integer(1, _MOST_REPEATS) if "repeats" in parts else 1,
        max_layers=parts["max_layers"].integer(2, MOST_LAYERS) if "max_layers" in parts else None,
        max_parameters=_parameters(parts["max_parameters"]) if "max_parameters" in parts else None,
        scales=_scales(parts["scales"], blocks) if "scales" in parts else Scales(),
        blocks=blocks,
    )


def check_blocks(genes: Mapping[str, Node], specs: Collection[GeneSpec]) -> None:
    """InputError where a gene of a space of blocks would need layers in their places."""
    for gene in specs:
        fine = next((axis for axis in ("tensors", "bands") if axis in gene.per), None)
        if fine is not None:
            genes[gene.name].fail(f"is per {fine}, which are in their places, and blocks move", "use layers or modules")


def _path(node: Node, sources: Collection[str]) -> tuple[str, ...]:
    names = []
    for child in node.sequence():
        name = child.one_of([*sources, "base", WINNER], "model of the path")
        if name in names:
            child.fail(f"{name} stands twice", "list each model once; `repeats: 2` repeats them all")
        names.append(name)
    if not names:
        node.fail("names no model", f"name some of {', '.join([*sources, 'base'])}")
    return tuple(names)


def _parameters(node: Node) -> float:
    most = node.number()
    if most <= 0:
        node.fail(f"{node.shown()} leaves no parameter", "give a multiple of the first model's, such as 1.5")
    if most > _WHOLE:
        node.integer()
    return most


def _scales(node: Node, blocks: int | None) -> Scales:
    if isinstance(node.value, dict):
        parts = node.declared(SCALES, "{form: shared, low: 0.5, high: 2.0}")
        default = Scales()
        form = _form(parts["form"], blocks) if "form" in parts else default.form
        low = parts["low"].number() if "low" in parts else default.low
        high = parts["high"].number() if "high" in parts else default.high
        if not 0 < low < high or not low <= 1 <= high:
            node.fail(f"{low:g} to {high:g} is no range of scales", "give 0 < low <= 1 <= high, and low below high")
        if not math.isfinite(high / low):
            node.fail(f"{low:g} to {high:g} is a wider ratio than any number", "narrow the range")
        return Scales(form, low, high)
    return Scales(_form(node, blocks))


def _form(node: Node, blocks: int | None) -> str:
    form = node.one_of(SCALE_FORMS, "form of scales")
    if blocks is not None and form == "pairs":
        node.fail("pairs are of slots, and blocks have borders", "write shared, or none")
    return form
