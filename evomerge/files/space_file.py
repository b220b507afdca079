"""The search-space file: base, sources, genes, budget (docs/files.md)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import RemovedError, Where
from evomerge.files.common import index, read_model, read_seconds, resolve
from evomerge.files.dataflow import check_blocks, read_dataflow, read_kind
from evomerge.files.freeze import read_freeze
from evomerge.files.genes import check_genes, read_fixed, read_genes
from evomerge.files.keys import BUDGET, SPACE
from evomerge.files.kinds import load_space
from evomerge.files.module_groups import GROUPS, READY_MADE
from evomerge.files.nodes import MOST_LAYERS, Node
from evomerge.files.objects import GeneSpec, ModelRef, SpaceSpec
from evomerge.files.ray import read_ray
from evomerge.files.settings import override
from evomerge.files.source_genes import (
    check_trajectories,
    last_checkpoints,
    read_source_genes,
    with_weight,
    without_own,
)
from evomerge.files.sources import SourceReader, Sources
from evomerge.registry import CHOICES, METHODS, OPTIMIZER_KEYS, OPTIMIZERS, REMOVED_OPTIMIZERS
from evomerge.safety.names import check_name

_DEFAULT_OPTIMIZER = "surrogate"
_MOST_TRIALS = 10_000_000
"""With a free scorer they would take a week: the bookkeeping of a trial costs some 50 ms."""

_DTYPES = ("float32", "float16", "bfloat16")


def read_space(
    file: Path,
    settings: Sequence[str] = (),
    optimizer: str | None = None,
    fitness: Path | None = None,
    folder: Path | None = None,
    known: Collection[str] | None = None,
) -> SpaceSpec:
    """Reads and validates a search-space file. `settings` are ``key=value`` overrides, with paths relative to `folder`
    (default: the current one); `optimizer` and `fitness` replace what the file names; `known` are the only paths that
    patterns of sources may match (default: all). Raises InputError with file, line and key."""
    root = load_space(file)
    for setting in settings:
        override(root, setting, folder)
    parts = root.mapping()
    if optimizer is not None:
        parts["optimizer"] = _other_optimizer(parts.get("optimizer"), optimizer)
    if fitness is not None:
        parts["fitness"] = Node(str(fitness.absolute()), Where("--fitness"))
    return space_from(root, file, known)


def _other_optimizer(node: Node | None, name: str) -> Node:
    """Replaces the optimizer. The keys that every optimizer has are kept; the replaced one's options go."""
    where = Where("--optimizer")
    options = node.value if node is not None and isinstance(node.value, dict) else {}
    kept = {key: options[key] for key in OPTIMIZER_KEYS if key in options}
    return Node({**kept, "name": Node(name, where)}, where)


def space_from(root: Node, file: Path, known: Collection[str] | None = None) -> SpaceSpec:
    kind = read_kind(root.mapping(example="base: path/of/the/base"))
    alone = kind == "dataflow" and "path" in root.value  # the path may be the base's
    needed = ["sources"] * (not alone) + ["genes"] * (kind != "dataflow")
    parts = root.mapping(["base", *needed, "fitness"], SPACE)
    base, found = read_model(parts["base"]), Sources()
    if "sources" in parts:
        found = SourceReader(base, known).read(parts["sources"], alone, last_checkpoints(parts.get("genes")))
    if found.trajectories and kind != "weights":
        parts["space"].fail("layers of single models are stacked, and a trajectory is an average", "write weights")
    sources = found.refs
    dataflow = read_dataflow(parts, kind, sources)
    modules = _modules(parts.get("modules"))
    genes, methods, fixed = _genes(parts, found, modules, kind == "both") if kind != "dataflow" else ((), (), {})
    if kind == "both":
        check_blocks(parts["genes"].value, genes)
    trials, seconds, items = _budget(parts.get("budget"))
    core, core_rank = _core(parts, genes, methods)
    return SpaceSpec(
        file=file,
        base=base,
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
        freeze=read_freeze(parts.get("freeze"), genes, methods, fixed, sources, modules),
        optimizer=_optimizer(parts.get("optimizer")),
        trials=trials,
        most_items=items,
        seconds=seconds,
        core=core,
        core_rank=core_rank,
        dataflow=dataflow,
        polish=_polish(parts.get("polish")),
        trajectories=found.trajectories,
        matched=found.matched,
        ray=read_ray(parts.get("ray")),
        where=index(root),
    )


def _genes(
    parts: Mapping[str, Node], sources: Sources, modules: Collection[str], blocks: bool
) -> tuple[tuple[GeneSpec, ...], tuple[str, ...], dict[str, float | bool]]:
    """Genes, methods, and what is fixed. `blocks`: whether merges are of blocks."""
    genes, methods = read_genes(without_own(parts["genes"]), len(sources.refs))
    for gene in genes:
        if "modules" in gene.per and not modules:
            parts["genes"].value[gene.name].fail("is per modules, and no module is named", "add modules: {mlp: mlp}")
    names = {g.name for g in genes}
    fixed = with_weight(read_fixed(parts.get("fixed"), methods, names), names, sources)
    check_trajectories(parts["genes"], sources.trajectories, genes)
    check_genes(parts["genes"], methods, genes, fixed, parts.get("fixed"))
    return (*genes, *read_source_genes(parts["genes"], sources, methods, blocks)), methods, fixed


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
        return node.integer(1, MOST_LAYERS)
    ranges = []
    end = 0
    for child in node.sequence():
        pair = child.sequence()
        if len(pair) != 2:
            child.fail(f"is {child.shown()}, not [start, end]", "write for example [0, 8]")
        start, stop = pair[0].integer(0, MOST_LAYERS), pair[1].integer(1, MOST_LAYERS)
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
    if isinstance(node.value, list):  # ready-made ones
        return {child.one_of(GROUPS, "module group"): READY_MADE for child in node.sequence()}
    modules = {
        check_name(name, "module", child.where): child.text()
        for name, child in node.mapping(example="{attention: self_attn}").items()
    }
    for name, text in modules.items():
        if text == READY_MADE and name not in GROUPS:
            mend = f"ready-made are {', '.join(GROUPS)}"
            node.value[name].fail(f"{name} is no ready-made module", f"give a part of tensor names; {mend}")
    if "other" in modules:
        node.value["other"].fail("`other` is the name of all remaining tensors", "choose another name")
    return modules


def _budget(node: Node | None) -> tuple[int | None, float | None, int | None]:
    """Returns trials, seconds and items; None is no limit, and at least one of them is a limit."""
    parts = node.declared(BUDGET, "{trials: 200, time: 4h}") if node is not None else {}
    limits = {key: child for key, child in parts.items() if child.value is not None}
    seconds = read_seconds(limits["time"]) if "time" in limits else None
    trials = limits["trials"].integer(1, _MOST_TRIALS) if "trials" in limits else None
    items = limits["items"].integer(1) if "items" in limits else None
    return (100 if trials is None and seconds is None and items is None else trials), seconds, items


def _polish(node: Node | None) -> bool | None:
    """None: the budget decides."""
    return None if node is None or node.value == "auto" else node.boolean()


def _core(parts: Mapping[str, Node], genes: Sequence[GeneSpec], methods: Sequence[str]) -> tuple[bool, int | None]:
    """Whether changes are merged in Core Space, and how many of its directions are kept."""
    core = "adapters" in parts and parts["adapters"].one_of(("full", "core"), "form") == "core"
    rank = parts["core_rank"].integer(1) if "core_rank" in parts else None
    if rank is not None and not core:
        parts["core_rank"].fail("is of Core Space, where nothing is merged here", "add adapters: core")
    other = next((name for name in methods if not METHODS[CHOICES[name].method].merges_changes), None)
    if core and other is not None:
        problem = f"{other} merges models, and Core Space holds changes of them"
        parts["genes"].value["method"].fail(problem, "use methods such as task_arithmetic and ties, or adapters: full")
    if core and any(gene.bands is not None for gene in genes):
        parts["adapters"].fail("has no bands: they are of whole matrices", "give the weight without `bands`")
    return core, rank


def _optimizer(node: Node | None) -> dict[str, Any]:
    """Name, seed, `asynchronous` (where it is true) and options as written; the optimizer's own declaration checks the
    options (`optimize/declarations.py`)."""
    if node is None:
        return {"name": _DEFAULT_OPTIMIZER, "seed": 0}
    if isinstance(node.value, str):
        return {"name": _optimizer_name(node), "seed": 0}
    parts = node.mapping(example="{name: cma-es, seed: 0}")
    name = _optimizer_name(parts["name"]) if "name" in parts else _DEFAULT_OPTIMIZER
    seed = parts["seed"].integer(0, 2**31 - 1) if "seed" in parts else 0
    options = {k: n.data for k, n in parts.items() if k != "asynchronous"}
    waits = "asynchronous" not in parts or not parts["asynchronous"].boolean()
    return {**options, "name": name, "seed": seed, **({} if waits else {"asynchronous": True})}


def _optimizer_name(node: Node) -> str:
    name = node.value
    if isinstance(name, str) and name in REMOVED_OPTIMIZERS:
        raise RemovedError(f"the optimizer {name} was removed", f"use {REMOVED_OPTIMIZERS[name]}", node.where)
    return node.one_of(OPTIMIZERS, "optimizer")
