"""The fitness file: slices with their tasks, metrics, weights and floors (docs/files.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from evomerge.files.common import index, resolve
from evomerge.files.nodes import Node, as_number, load, override
from evomerge.files.objects import SAVINGS, FitnessSpec, FloorSpec, Saving, SliceSpec
from evomerge.registry import OBJECTIVES

_OPTIONS = (
    "num_fewshot",
    "filter",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "system_instruction",
    "gen_kwargs",
    "add_bos_token",
)
_KEYS = ("include", "objective", "split", "confidence", "batch_size", "economy")
_SLICE_KEYS = ("task", "python", "data", "metric", "direction", "floor", "weight", "items", "cluster", "range")


def read_fitness(file: Path, settings: Sequence[str] = (), folder: Path | None = None) -> FitnessSpec:
    """Read and validate a fitness file. `settings` are ``key=value`` overrides, with paths relative to `folder`
    (default: the current one). Raises InputError."""
    root = load(file)
    for setting in settings:
        override(root, setting, folder)
    return fitness_from(root, file)


def fitness_from(root: Node, file: Path) -> FitnessSpec:
    parts = root.mapping(["slices"], _KEYS)
    slices = {name: _slice(name, node) for name, node in parts["slices"].mapping().items()}
    if not slices:
        parts["slices"].fail("names no slice", "add at least one task")
    search, seed = _split(parts.get("split"))
    objective = _objective(parts["objective"]) if "objective" in parts else "mean"
    confidence = parts.get("confidence")
    return FitnessSpec(
        file=file,
        slices=slices,
        include=_include(parts.get("include")),
        objective=objective,
        search=search,
        split_seed=seed,
        confidence=confidence.number(0.5, 0.9999) if confidence and confidence.value is not None else None,
        batch_size=parts["batch_size"].integer(1) if "batch_size" in parts else 16,
        economy=_economy(parts.get("economy")),
        where=index(root),
    )


def _economy(node: Node | None) -> tuple[Saving, ...]:
    """All means of saving, none, or those that are listed."""
    if node is None or node.value is True:
        return SAVINGS
    if node.value is False:
        return ()
    if not isinstance(node.value, list):
        node.fail(f"is {node.shown()}", f"give true, false, or a list of {', '.join(SAVINGS)}")
    named = {entry.one_of(SAVINGS, "means of saving") for entry in node.sequence()}
    return tuple(saving for saving in SAVINGS if saving in named)


def _objective(node: Node) -> str:
    if node.value == "pareto":
        node.fail("pareto is not available in this version", "use weighted_mean or min")
    return node.one_of(OBJECTIVES, "objective")


def _include(node: Node | None) -> tuple[Path, ...]:
    if node is None:
        return ()
    entries = node.sequence() if isinstance(node.value, list) else [node]
    folders = []
    for entry in entries:
        folder = resolve(entry)
        if not folder.is_dir():
            entry.fail(f"no such folder: {folder}", "name a folder that holds lm-eval task YAML")
        folders.append(folder)
    return tuple(folders)


def _split(node: Node | None) -> tuple[float, int]:
    if node is None:
        return 0.5, 0
    parts = node.mapping((), ("search", "seed"))
    share = parts["search"].number(0.0, 1.0) if "search" in parts else 0.5
    if share in (0.0, 1.0):
        parts["search"].fail(f"{share:g} leaves one split without items", "give a share between 0 and 1, such as 0.5")
    return share, parts["seed"].integer(0) if "seed" in parts else 0


def _slice(name: str, node: Node) -> SliceSpec:
    parts = node.mapping((), (*_SLICE_KEYS, *_OPTIONS))
    if ("task" in parts) == ("python" in parts):
        node.fail("needs either `task` (an lm-eval task) or `python` (module:function)", "give one of them")
    if "python" in parts:
        _check_callable(node, parts)
    elif "data" in parts:
        parts["data"].fail("only goes with `python`; an lm-eval task names its own data", "remove it")
    elif "metric" not in parts:
        node.fail("has no 'metric'", "add for example `metric: acc`")
    metric = parts["metric"].text() if "metric" in parts else None
    weight = parts["weight"].number(0.0) if "weight" in parts else 1.0
    options = {k: parts[k].data for k in _OPTIONS if k in parts}
    if "num_fewshot" in parts:
        parts["num_fewshot"].integer(0)
    direction = parts["direction"].one_of(("higher", "lower"), "direction") if "direction" in parts else None
    return SliceSpec(
        name=name,
        task=parts["task"].text() if "task" in parts else None,
        python=parts["python"].text() if "python" in parts else None,
        script=_script(parts["python"]) if "python" in parts else None,
        data=resolve(parts["data"]) if "data" in parts else None,
        metric=metric,
        direction=cast(Literal["higher", "lower"] | None, direction),
        floor=_floor(parts["floor"], metric) if "floor" in parts else None,
        weight=weight,
        items=parts["items"].integer(1) if "items" in parts else None,
        cluster=parts["cluster"].text() if "cluster" in parts else None,
        range=_range(parts["range"]) if "range" in parts else None,
        options=options,
        where=node.where,
        lines={k: n.where for k, n in parts.items()},
    )


def _range(node: Node) -> tuple[float, float]:
    ends = [entry.number() for entry in node.sequence()]
    if len(ends) != 2 or ends[0] >= ends[1]:
        node.fail("is no range", "give the lowest and the highest score of an item, such as [0, 1]")
    return ends[0], ends[1]


def _check_callable(node: Node, parts: dict[str, Node]) -> None:
    module, colon, function = parts["python"].text().rpartition(":")
    if not colon or not module.strip() or not function.isidentifier():
        parts["python"].fail(f"{parts['python'].value!r} is not module:function", "write for example my_fitness:score")
    if "data" not in parts:
        node.fail("has no 'data'", "name the JSONL file whose items the callable scores")
    for key in _OPTIONS:
        if key in parts:
            parts[key].fail("only goes with an lm-eval `task`", "remove it")


def _script(node: Node) -> Path:
    """The file of ``module:function`` (beside the fitness file) or ``path/to/file.py:function``."""
    module = node.text().rpartition(":")[0]
    return resolve(node, module if module.endswith(".py") else f"{module.replace('.', '/')}.py")


_SHARES = ("acc", "acc_norm", "exact_match")


def _floor(node: Node, metric: str | None) -> FloorSpec | None:
    if node.value is None:
        return None
    if not isinstance(node.value, dict):
        if as_number(node.value) is None:
            node.fail(
                f"is {node.shown()}", "give a number or {of: base, margin: 0.02} or {of: best_source, keep: 0.97}"
            )
        if (metric or "").partition(",")[0] in _SHARES and not 0 <= node.number() <= 1:
            node.fail(f"{node.shown()} is outside [0, 1] of {metric}", "write for example 0.9 for 90 %")
        return FloorSpec(value=node.number(), where=node.where)
    parts = node.mapping(["of"], ["keep", "margin"])
    if ("keep" in parts) == ("margin" in parts):
        node.fail("needs either `keep` (a ratio) or `margin` (a distance)", "give one of them")
    return FloorSpec(
        of=parts["of"].text(),
        keep=parts["keep"].number(0.0, 10.0) if "keep" in parts else None,
        margin=parts["margin"].number() if "margin" in parts else None,
        where=parts["of"].where,
    )
