"""The search-space file: base, sources, genes, budget (docs/files.md)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import Where, suggestion
from evomerge.files.common import index, read_model, read_seconds, resolve
from evomerge.files.nodes import Node, interval, load, override
from evomerge.files.objects import AXES, Axis, GeneSpec, ModelRef, SpaceSpec
from evomerge.registry import METHODS, OPTIMIZERS, Parameter

_KEYS = (
    "tokenizer",
    "chat_template",
    "dtype",
    "layers",
    "modules",
    "interpolate",
    "fixed",
    "optimizer",
    "budget",
)
_DTYPES = ("float32", "float16", "bfloat16")
_SEARCHABLE = tuple(name for name in METHODS if name != "passthrough")


def read_space(
    file: Path,
    settings: Sequence[str] = (),
    optimizer: str | None = None,
    fitness: Path | None = None,
    folder: Path | None = None,
) -> SpaceSpec:
    """Read and validate a search-space file. `settings` are ``key=value`` overrides, with paths relative to `folder`
    (default: the current one); `optimizer` and `fitness` replace what the file names. Raises InputError with file,
    line and key."""
    root = load(file)
    for setting in settings:
        override(root, setting, folder)
    parts = root.mapping()
    if optimizer is not None:
        parts["optimizer"] = _other_optimizer(parts.get("optimizer"), optimizer)
    if fitness is not None:
        parts["fitness"] = Node(str(fitness.absolute()), Where("--fitness"))
    return space_from(root, file)


def _other_optimizer(node: Node | None, name: str) -> Node:
    """Another optimizer keeps the file's seed; the options were those of the one that it replaces."""
    where = Where("--optimizer")
    seed = node.value.get("seed") if node is not None and isinstance(node.value, dict) else None
    return Node({"name": Node(name, where), **({"seed": seed} if seed else {})}, where)


def space_from(root: Node, file: Path) -> SpaceSpec:
    parts = root.mapping(["base", "sources", "genes", "fitness"], _KEYS)
    sources = _sources(parts["sources"])
    modules = _modules(parts.get("modules"))
    genes, methods = _genes(parts["genes"])
    for gene in genes:
        if "modules" in gene.per and not modules:
            parts["genes"].value[gene.name].fail("is per modules, and no module is named", "add modules: {mlp: mlp}")
    _check_sources(parts["genes"], methods, sources)
    fixed = _fixed(parts.get("fixed"), methods, {g.name for g in genes})
    _check_required(parts["genes"], methods, {*fixed, *(g.name for g in genes)})
    trials, seconds = _budget(parts.get("budget"))
    return SpaceSpec(
        file=file,
        base=read_model(parts["base"]),
        sources=sources,
        genes=genes,
        methods=methods,
        fitness=resolve(parts["fitness"]),
        tokenizer=_tokenizer(parts["tokenizer"], sources) if "tokenizer" in parts else "base",
        chat_template=_chat_template(parts.get("chat_template"), sources),
        dtype=parts["dtype"].one_of(_DTYPES, "dtype") if "dtype" in parts else None,
        layers=_layers(parts["layers"]) if "layers" in parts else 1,
        modules=modules,
        interpolate=parts["interpolate"].boolean() if "interpolate" in parts else False,
        fixed=fixed,
        optimizer=_optimizer(parts.get("optimizer")),
        trials=trials,
        seconds=seconds,
        where=index(root),
    )


def _sources(node: Node) -> dict[str, ModelRef]:
    sources = {}
    for name, child in node.mapping().items():
        if name in ("base", "best_source", "uniform") or not name.replace("-", "_").replace(".", "_").isidentifier():
            child.fail(f"{name!r} cannot name a source", "use letters, digits, - and _; base is taken")
        sources[name] = read_model(child)
    if not sources:
        node.fail("names no source", "add at least one fine-tune of the base")
    return sources


def _tokenizer(node: Node, sources: dict[str, ModelRef]) -> str:
    return node.one_of(["base", "union", *sources], "tokenizer policy")


def _chat_template(node: Node | None, sources: Collection[str]) -> str:
    if node is None or node.value is None:
        return "auto"
    text = node.text()
    if "{" not in text:
        node.one_of(["auto", "base", *sources], "chat template (neither a source nor a Jinja text)")
    return text


def _layers(node: Node) -> int | str | tuple[tuple[int, int], ...]:
    if node.value == "each":
        return "each"
    if not isinstance(node.value, list):
        if not isinstance(node.value, int) or isinstance(node.value, bool):
            node.fail(f"is {node.shown()}", "give a number of groups, each, or ranges such as [[0, 8], [8, 16]]")
        return node.integer(1)
    ranges = []
    end = 0
    for child in node.sequence():
        pair = child.sequence()
        if len(pair) != 2:
            child.fail(f"is {child.shown()}, not [start, end]", "write for example [0, 8]")
        start, stop = pair[0].integer(0), pair[1].integer(1)
        if start != end or stop <= start:
            child.fail(
                f"{child.shown()} does not follow on layer {end}", "give ranges [start, end) without gaps, from 0"
            )
        ranges.append((start, stop))
        end = stop
    if not ranges:
        node.fail("names no range", "give at least one, such as [[0, 8]]")
    return tuple(ranges)


def _modules(node: Node | None) -> dict[str, str]:
    if node is None:
        return {}
    modules = {name: child.text() for name, child in node.mapping().items()}
    if "other" in modules:
        node.value["other"].fail("`other` is the name of all remaining tensors", "choose another name")
    return modules


def _budget(node: Node | None) -> tuple[int | None, float | None]:
    """Trials (None: no limit) and seconds (None: no limit); at least one of them limits."""
    parts = node.mapping((), ("trials", "time")) if node is not None else {}
    given = {key: child for key, child in parts.items() if child.value is not None}
    seconds = read_seconds(given["time"]) if "time" in given else None
    trials = given["trials"].integer(1) if "trials" in given else None
    return (100 if trials is None and seconds is None else trials), seconds


def _optimizer(node: Node | None) -> dict[str, Any]:
    """Name, seed and options as written; the optimizer's own declaration checks the options (`optimize/options.py`)."""
    if node is None:
        return {"name": "cma-es", "seed": 0}
    if not isinstance(node.value, dict):
        return {"name": node.one_of(OPTIMIZERS, "optimizer"), "seed": 0}
    parts = node.mapping(["name"])
    name = parts["name"].one_of(OPTIMIZERS, "optimizer")
    seed = parts["seed"].integer(0, 2**31 - 1) if "seed" in parts else 0
    return {**{k: n.data for k, n in parts.items()}, "name": name, "seed": seed}


# Genes


def _genes(node: Node) -> tuple[tuple[GeneSpec, ...], tuple[str, ...]]:
    parts = node.mapping()
    if "method" not in parts:
        node.fail("has no 'method'", "add for example `method: ties`, or a gene `method: {choices: [...]}`")
    method_gene, methods = _method(parts["method"])
    declared = _declared(methods)
    genes = [method_gene] if method_gene else []
    for name, child in parts.items():
        if name == "method":
            continue
        if name not in declared:
            _unknown_gene(child, name, methods, declared)
        genes.append(_numeric(name, child, declared[name]))
    return tuple(genes), methods


def _method(node: Node) -> tuple[GeneSpec | None, tuple[str, ...]]:
    if not isinstance(node.value, dict):
        return None, (node.one_of(_SEARCHABLE, "merge method"),)
    parts = node.mapping(["choices"], ["per", "init"])
    names = [child.one_of(_SEARCHABLE, "merge method") for child in parts["choices"].sequence()]
    if len(set(names)) != len(names) or not names:
        parts["choices"].fail(f"is {parts['choices'].shown()}", "name each method once, at least one")
    per = _per(parts.get("per"), ("layers",), "method", "a method can differ by layer group only")
    init = parts["init"].one_of(names, "choice") if "init" in parts else None
    if len(names) == 1:
        return None, (names[0],)
    return GeneSpec("method", per, init=init, choices=tuple(names), where=node.where), tuple(names)


def _declared(methods: Sequence[str]) -> dict[str, Parameter]:
    """Every number that the chosen methods take, by name."""
    found: dict[str, Parameter] = {}
    for method in methods:
        for parameter in METHODS[method].parameters:
            found.setdefault(parameter.name, parameter)
    return found


def _unknown_gene(node: Node, name: str, methods: Sequence[str], declared: dict[str, Parameter]) -> None:
    owners = [m for m in _SEARCHABLE if METHODS[m].parameter(name)]
    chosen = ", ".join(methods)
    if owners:
        node.fail(f"no chosen method uses the gene {name!r} (chosen: {chosen})", f"remove it; {owners[0]} would use it")
    searchable = ["method", *(p for p, d in declared.items() if d.kind is not bool)]
    node.fail(f"unknown gene {name!r}", suggestion(name, searchable))


def _numeric(name: str, node: Node, parameter: Parameter) -> GeneSpec:
    if parameter.kind is bool:
        node.fail(f"{name!r} is a flag, not a gene", f"set it under `fixed:`, as `fixed: {{{name}: true}}`")
    if not isinstance(node.value, dict):
        node.fail(
            f"is {node.shown()}, not a range",
            f"write {{low: ..., high: ...}}, or put it under `fixed: {{{name}: ...}}`",
        )
    parts = node.mapping(["low", "high"], ["init", "log", "per"])
    low, high = (_legal(parts[k], parameter) for k in ("low", "high"))
    if low > high:
        parts["high"].fail(f"low {low:g} is above high {high:g}", "swap them")
    if low == high:
        node.fail(
            f"low and high are both {low:g}", f"a value that is not searched goes under `fixed: {{{name}: {low:g}}}`"
        )
    log = parts["log"].boolean() if "log" in parts else False
    if log and low <= 0:
        parts["low"].fail(f"{low:g} has no logarithm", "give a low above 0, or log: false")
    axes: tuple[Axis, ...] = AXES if parameter.scope == "source" else ("layers", "modules")
    reason = f"{name} has one value for all sources"
    return GeneSpec(
        name=name,
        per=_per(parts.get("per"), axes, name, reason),
        low=low,
        high=high,
        init=parts["init"].number(low, high) if "init" in parts else min(max(parameter.init, low), high),
        log=log,
        where=node.where,
    )


def _legal(node: Node, parameter: Parameter) -> float:
    number = node.number()
    if not parameter.low <= number <= parameter.high:
        legal = interval(parameter.low, parameter.high)
        node.fail(f"{number:g} is outside the legal range {legal} of {parameter.name}", "give a number inside it")
    return number


def _per(node: Node | None, legal: tuple[Axis, ...], name: str, reason: str) -> tuple[Axis, ...]:
    if node is None:
        return ()
    entries = node.sequence() if isinstance(node.value, list) else [node]
    axes = [entry.one_of(AXES, "axis") for entry in entries]
    for entry, axis in zip(entries, axes, strict=True):
        if axis not in legal:
            entry.fail(f"{name} cannot be per {axis}: {reason}", f"use {' or '.join(legal)}")
    return tuple(a for a in AXES if a in axes)


def _fixed(node: Node | None, methods: Sequence[str], genes: set[str]) -> dict[str, float | bool]:
    if node is None:
        return {}
    declared = _declared(methods)
    fixed: dict[str, float | bool] = {}
    for name, child in node.mapping().items():
        if name not in declared:
            child.fail(f"no chosen method has a parameter {name!r}", suggestion(name, declared))
        if name in genes:
            child.fail(f"{name!r} is both fixed and a gene", "keep one of them")
        fixed[name] = child.boolean() if declared[name].kind is bool else _legal(child, declared[name])
    return fixed


def _check_sources(node: Node, methods: Sequence[str], sources: Collection[str]) -> None:
    """InputError where a chosen method cannot merge that many sources."""
    for method in methods:
        least, most = METHODS[method].sources
        if not least <= len(sources) <= most:
            problem = f"{method} merges the base with {least} source, this space has {len(sources)}"
            node.value["method"].fail(problem, "choose another method, or keep one source")


def _check_required(node: Node, methods: Sequence[str], given: Collection[str]) -> None:
    """InputError where a chosen method lacks a value that it needs."""
    for method in methods:
        for parameter in METHODS[method].parameters:
            if parameter.default is None and parameter.name not in given:
                problem = f"{method} needs {parameter.name!r}, which is neither a gene nor fixed"
                node.value["method"].fail(problem, f"add a gene `{parameter.name}: {{low: 0, high: 1}}`")
