"""`freeze:` of a search-space file: layers that stay the base's, sources whose genes are not searched."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from evomerge.files.nodes import MOST_LAYERS, Node
from evomerge.files.objects import Freeze, GeneSpec
from evomerge.registry import CHOICES, METHODS


def read_freeze(
    node: Node | None, genes: Sequence[GeneSpec], methods: Sequence[str], sources: Collection[str]
) -> Freeze:
    """Reads `freeze`. Raises InputError where a layer or a source cannot be frozen in this space."""
    if node is None or node.value is None:
        return Freeze()
    parts = node.mapping((), ("layers", "sources"), "{layers: [[0, 4]], sources: [code]}")
    layers = _layers(parts["layers"]) if "layers" in parts else ()
    for method in methods if layers else ():
        if not leaves_base(method):
            problem = f"{method} has no value that leaves a layer as the base's"
            parts["layers"].fail(problem, "freeze no layers, or search a method that adds deltas to the base")
    return Freeze(layers, _sources(parts["sources"], genes, sources) if "sources" in parts else {})


def leaves_base(choice: str) -> bool:
    """Says whether a method can give the base back: with weights of 0, or at the beginning of a path."""
    method = METHODS[CHOICES[choice].method]
    name = "weight" if method.base == "subtracted" else "t"
    return method.base in ("subtracted", "endpoint") and method.parameter(name) is not None


def _layers(node: Node) -> tuple[tuple[int, int], ...]:
    """Returns ranges [start, end), read from ranges and single layers."""
    spans = []
    for child in node.sequence():
        if not isinstance(child.value, list):
            start = child.integer(0, MOST_LAYERS)
            spans.append((start, start + 1))
            continue
        pair = child.sequence()
        if len(pair) != 2 or pair[0].integer(0, MOST_LAYERS) >= pair[1].integer(1, MOST_LAYERS):
            child.fail(f"{child.shown()} is no range of layers", "write [start, end), for example [0, 4], or a number")
        spans.append((pair[0].integer(0), pair[1].integer(1)))
    return tuple(sorted(spans))


def _sources(node: Node, genes: Sequence[GeneSpec], sources: Collection[str]) -> dict[str, float | None]:
    entries = node.mapping() if isinstance(node.value, dict) else {c.text(): c for c in node.sequence()}
    weight = next((gene for gene in genes if gene.name == "weight"), None)
    frozen: dict[str, float | None] = {}
    for name, child in entries.items():
        if name not in sources:
            child.fail(f"there is no source {name!r}", f"name some of {', '.join(sources)}")
        if not any("sources" in gene.per for gene in genes):
            child.fail(f"no gene has a value of {name}'s own", "give a gene `per: [sources]`, or remove it")
        has_weight = isinstance(node.value, dict) and child.value is not None
        if has_weight and (weight is None or "sources" not in weight.per):
            child.fail("there is no gene `weight` per sources to hold", f"write sources: [{name}]")
        frozen[name] = child.number() if has_weight else None
    return frozen
