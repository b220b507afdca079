"""The search-space file: base, sources, genes, budget (docs/files.md)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import RemovedError, Where
from evomerge.files.common import index, read_model, read_seconds, read_source, resolve
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
from evomerge.registry import OPTIMIZER_KEYS, OPTIMIZERS, REMOVED_OPTIMIZERS
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
) -> SpaceSpec:
    """Reads and validates a search-space file. `settings` are ``key=value`` overrides, with paths relative to `folder`
    (default: the current one); `optimizer` and `fitness` replace what the file names. Raises InputError with file,
    line and key."""
    root = load_space(file)
    for setting in settings:
        override(root, setting, folder)
    parts = root.mapping()
    if optimizer is not None:
        parts["optimizer"] = _other_optimizer(parts.get("optimizer"), optimizer)
    if fitness is not None:
        parts["fitness"] = Node(str(fitness.absolute()), Where("--fitness"))
    return space_from(root, file)


def _other_optimizer(node: Node | None, name: str) -> Node:
    """Replaces the optimizer. The keys that every optimizer has are kept; the replaced one's options go."""
    where = Where("--optimizer")
    options = node.value if node is not None and isinstance(node.value, dict) else {}
    kept = {key: options[key] for key in OPTIMIZER_KEYS if key in options}
    return Node({**kept, "name": Node(name, where)}, where)


def space_from(root: Node, file: Path) -> SpaceSpec:
    kind = read_kind(root.mapping(example="base: path/of/the/base"))
    alone = kind == "dataflow" and "path" in root.value  # the path may be the base's
    needed = ["sources"] * (not alone) + ["genes"] * (kind != "dataflow")
    parts = root.mapping(["base", *needed, "fitness"], SPACE)
    sources = _sources(parts["sources"], can_be_none=alone) if "sources" in parts else {}
    dataflow = read_dataflow(parts, kind, sources)
    modules = _modules(parts.get("modules"))
    genes, methods, fixed = _genes(parts, len(sources), modules) if kind != "dataflow" else ((), (), {})
    if kind == "both":
        check_blocks(parts["genes"].value, genes)
    trials, seconds, items = _budget(parts.get("budget"))
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
        freeze=read_freeze(parts.get("freeze"), genes, methods, fixed, sources, modules),
        optimizer=_optimizer(parts.get("optimizer")),
        trials=trials,
        most_items=items,
        seconds=seconds,
        dataflow=dataflow,
        ray=read_ray(parts.get("ray")),
        where=index(root),
    )


def _genes(
    parts: Mapping[str, Node], sources: int, modules: Collection[str]
) -> tuple[tuple[GeneSpec, ...], tuple[str, ...], dict[str, float | bool]]:
    """Genes, methods, and what is fixed."""
    genes, methods = read_genes(parts["genes"], sources)
    for gene in genes:
        if "modules" in gene.per and not modules:
            parts["genes"].value[gene.name].fail("is per modules, and no module is named", "add modules: {mlp: mlp}")
    fixed = read_fixed(parts.get("fixed"), methods, {g.name for g in genes})
    check_genes(parts["genes"], methods, genes, fixed, parts.get("fixed"))
    return genes, methods, fixed


def _sources(node: Node, can_be_none: bool = False) -> dict[str, ModelRef]:
    if not isinstance(node.value, dict):
        node.fail(f"is {node.shown()}, and each source needs a name", "write for example sources: {code: path/of/it}")
    sources = {}
    for name, child in node.mapping().items():
        check_name(name, "source", child.where)
        if name in ("base", "best_source", "uniform") or not name.replace("-", "_").replace(".", "_").isidentifier():
            child.fail(f"{name!r} cannot name a source", "use letters, digits, - and _; base is taken")
        sources[name] = read_source(child)
    if not sources and not can_be_none:
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
