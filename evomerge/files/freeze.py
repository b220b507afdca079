"""`freeze:` of a search-space file: layers and modules that are not merged, sources whose genes are not searched."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from evomerge.files.keys import FREEZE
from evomerge.files.nodes import MOST_LAYERS, Node
from evomerge.files.objects import Freeze, GeneSpec
from evomerge.registry import CHOICES, METHODS, NEUTRAL, PLAIN


def read_freeze(
    node: Node | None,
    genes: Sequence[GeneSpec],
    methods: Sequence[str],
    fixed: Mapping[str, float | bool],
    sources: Collection[str],
    modules: Collection[str],
) -> Freeze:
    """Reads `freeze`. Raises InputError where a layer, a source or a module cannot be frozen in this space."""
    if node is None or node.value is None:
        return Freeze()
    parts = node.declared(FREEZE, "{layers: [[0, 4]], sources: [code]}")
    layers = _layers(parts["layers"]) if "layers" in parts else ()
    if layers:
        _check_leave_base(parts["layers"], methods, "a layer")
    return Freeze(
        layers,
        _sources(parts["sources"], genes, sources) if "sources" in parts else {},
        _modules(parts["modules"], genes, methods, fixed, sources, modules) if "modules" in parts else {},
    )


def _check_leave_base(node: Node, methods: Sequence[str], what: str) -> None:
    for method in methods:
        if not leaves_base(method):
            problem = f"{method} has no value that leaves {what} as the base's"
            node.fail(problem, f"freeze no {what[2:]}s, or search a method that adds deltas to the base")


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


def _modules(
    node: Node,
    genes: Sequence[GeneSpec],
    methods: Sequence[str],
    fixed: Mapping[str, float | bool],
    sources: Collection[str],
    modules: Collection[str],
) -> dict[str, str | None]:
    """Returns whose each frozen module is: a source's, or (None) the base's."""
    entries = node.mapping() if isinstance(node.value, dict) else {c.text(): None for c in node.sequence()}
    searched, frozen = {gene.name for gene in genes}, dict[str, str | None]()
    for name, child in entries.items():
        at, kept = child or node, child.text() if child is not None else "base"
        if name not in modules:
            at.fail(f"there is no module {name!r}", f"name some of {', '.join(modules) or '`modules`, which has none'}")
        if kept != "base" and kept not in sources:
            at.fail(f"there is no source {kept!r}", f"write base, or some of {', '.join(sources)}")
        if kept == "base":
            _check_leave_base(at, methods, "a module")
        elif not {"weight", "t"} & searched:
            at.fail("there is no gene `weight` to hold", "search weights, or write base")
        if kept != "base" and any(gene.bands is not None for gene in genes):
            at.fail("weights of bands make no module a source's bit for bit", "write base, or search without bands")
        for method in methods if kept != "base" else ():
            if not gives_source(method, searched, fixed):
                problem = f"{method} has no value that makes a module a source's"
                at.fail(problem, "write base, or search task_arithmetic, linear, or ties with a gene `density`")
        frozen[name] = None if kept == "base" else kept
    return frozen


def gives_source(choice: str, searched: Collection[str], fixed: Mapping[str, float | bool]) -> bool:
    """Says whether a method gives a source back where its weight is 1 and all others are 0, or at the end of a path."""
    defaults = {p.name: p.default for p in CHOICES[choice].parameters if p.name in NEUTRAL}
    neutral = all(name in searched or fixed.get(name, value) == NEUTRAL[name] for name, value in defaults.items())
    return choice in PLAIN and neutral
