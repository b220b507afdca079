"""The fitness file: slices with their tasks, metrics, weights and floors (docs/files.md)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

from evomerge.errors import InputError, Where, suggestion
from evomerge.files.common import index, read_seconds, resolve
from evomerge.files.keys import FITNESS, FLOOR, SLICE, SLICE_OPTIONS, SPLIT
from evomerge.files.kinds import load_fitness
from evomerge.files.nodes import Node, as_number
from evomerge.files.objects import (
    ENGINES,
    LENGTHS,
    MEASURES,
    OLD_KEYS,
    PLACEHOLDER,
    PLACEHOLDERS,
    PRUNERS,
    Command,
    Engine,
    FitnessSpec,
    FloorSpec,
    FunctionRef,
    Measure,
    Pruner,
    SliceSpec,
)
from evomerge.files.settings import override
from evomerge.plugins import scorers
from evomerge.registry import OBJECTIVES, PARETO
from evomerge.safety.names import check_name

MOST_SHOTS = 1_000
"""Few-shot examples of a prompt. No model's context holds that many."""

LONGEST = 3600.0
"""Seconds that a command may take for a candidate where its slice has no `timeout`."""

_READERS: dict[str, Callable[[Node], Any]] = {
    "num_fewshot": lambda node: node.integer(0, MOST_SHOTS),
    "filter": Node.text,
    "apply_chat_template": Node.boolean,
    "fewshot_as_multiturn": Node.boolean,
    "system_instruction": Node.text,
    "gen_kwargs": lambda node: _generation(node),  # defined below
    "add_bos_token": Node.boolean,
}
"""The readers of what is handed to lm-eval."""

_KINDS = ("task", "of", "python", "scorer", "command", "measure")
_OF_MEASURES = ("measure", "floor", "weight")
_OF_REPLIES = ("of", "metric", "floor", "weight")
MOST_SAMPLES = 256


def read_fitness(
    file: Path, settings: Sequence[str] = (), folder: Path | None = None, named: Where | None = None
) -> FitnessSpec:
    """Reads and validates a fitness file. `settings` are ``key=value`` overrides, with paths relative to `folder`
    (default: the current one); `named` is where a search space names the file. Old names of keys are read as the new
    ones. Raises InputError."""
    root = load_fitness(file, named)
    _rename_old_keys(root)
    for setting in settings:
        key = setting.strip().partition("=")[0].partition(".")[0].strip()
        override(root, setting.replace(key, OLD_KEYS.get(key, key), 1), folder)
    return fitness_from(root, file)


def _rename_old_keys(root: Node) -> None:
    """Renames keys that have an old name. InputError where a key is given under both names."""
    parts = root.mapping()
    for old, new in OLD_KEYS.items():
        if old in parts and new in parts:
            parts[old].fail(f"is the old name of {new!r}, which is given, too", "keep one of them")
        if old in parts:
            parts[new] = parts.pop(old)


def fitness_from(root: Node, file: Path) -> FitnessSpec:
    parts = root.declared(FITNESS, "slices: {code: {task: humaneval, metric: pass@1}}")
    if not isinstance(parts["slices"].value, dict):
        problem = f"is {parts['slices'].shown()}, and each slice needs a name"
        parts["slices"].fail(problem, "write for example slices: {english: {task: wikitext, metric: bits_per_byte}}")
    read = {name: _slice(name, node) for name, node in parts["slices"].mapping().items()}
    slices = {name: spec if spec.of is None else _measured(spec, read) for name, spec in read.items()}
    if not slices:
        parts["slices"].fail("names no slice", "add at least one task")
    if "model" in parts:
        _check_no_language_model(slices)
    if all(spec.measure is not None for spec in slices.values()):
        parts["slices"].fail("measure sizes only, and say nothing of what a model can do", "add at least one task")
    search, seed = _split(parts.get("split"))
    objective = parts["objective"].one_of(OBJECTIVES, "objective") if "objective" in parts else "mean"
    where = index(root)
    where.update({new: where[old] for old, new in OLD_KEYS.items() if old in where})
    return FitnessSpec(
        file=file,
        slices=slices,
        include=_include(parts.get("include")),
        model=_function(parts["model"]) if "model" in parts else None,
        objective=objective,
        search=search,
        split_seed=seed,
        confidence=_confidence(parts.get("confidence")),
        batch_size=parts["batch_size"].integer(1) if "batch_size" in parts else 16,
        pruning=_pruning(parts.get("pruning"), objective),
        auto_pruning="pruning" not in parts or parts["pruning"].value == "auto",
        engine=_engine(parts) or "auto",
        where=where,
    )


def _pruning(node: Node | None, objective: str) -> tuple[Pruner, ...]:
    """Reads the pruners: all that the objective allows (`auto`, true), none, or the listed ones. A race is for places
    in one order, which a front is not."""
    if node is None or node.value is True or node.value == "auto":
        return tuple(pruner for pruner in PRUNERS if pruner != "racing" or objective != PARETO)
    if node.value is False:
        return ()
    if not isinstance(node.value, list):
        node.fail(f"is {node.shown()}", f"give auto, true, false, or a list of {', '.join(PRUNERS)}")
    for entry in node.sequence():
        if entry.one_of(PRUNERS, "pruner") == "racing" and objective == PARETO:
            entry.fail("racing needs one order of all candidates, and pareto keeps a front", "remove it, or pareto")
    listed = {entry.value for entry in node.sequence()}
    return tuple(pruner for pruner in PRUNERS if pruner in listed)


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


def _confidence(node: Node | None) -> float | None:
    if node is None or node.value is None:
        return None
    _check_no_percentage(node, 1, 100)
    return node.number(0.5, 0.9999)


def _check_no_percentage(node: Node, low: float, high: float) -> None:
    """InputError where a share is written in per cent: as a number above `low`, up to `high`."""
    number = as_number(node.value)
    if number is not None and low < number <= high:
        node.fail(f"{node.shown()} is a percentage, and a share is meant", f"write {number / 100:g} for {number:g} %")


def _split(node: Node | None) -> tuple[float, int]:
    if node is None:
        return 0.5, 0
    parts = node.declared(SPLIT, "{search: 0.5, seed: 0}")
    if "search" in parts:
        _check_no_percentage(parts["search"], 1, 100)
    share = parts["search"].number(0.0, 1.0) if "search" in parts else 0.5
    if share in (0.0, 1.0):
        parts["search"].fail(f"{share:g} leaves one split without items", "give a share between 0 and 1, such as 0.5")
    return share, parts["seed"].integer(0) if "seed" in parts else 0


def _slice(name: str, node: Node) -> SliceSpec:
    check_name(name, "slice", node.where)
    parts = node.declared({**SLICE, **SLICE_OPTIONS}, "{task: wikitext, metric: bits_per_byte}")
    if sum(kind in parts for kind in _KINDS) != 1:
        kinds = (
            "`task` (an lm-eval task), `python` (module:function), `scorer` (of a plug-in), `command` (a program), "
            "`measure` (of its size), or `of` (the answers of another slice)"
        )
        node.fail(f"needs one of {kinds}", "give one of them")
    if "engine" in parts and not {"task", "of"} & parts.keys():
        parts["engine"].fail("only goes with an lm-eval `task`", "remove it")
    if "cwd" in parts and "command" not in parts:
        parts["cwd"].fail("only goes with `command`", "remove it")
    if "measure" in parts:
        _check_measure(parts)
    elif "of" in parts:
        _check_replies(node, parts)
    elif "task" not in parts:
        _check_callable(node, parts)
    elif "data" in parts:
        parts["data"].fail("only goes with `python` and `command`; an lm-eval task names its own data", "remove it")
    elif "metric" not in parts:
        node.fail("has no 'metric'", "add for example `metric: acc`")
    metric = parts["metric"].text() if "metric" in parts else None
    weight = parts["weight"].number(0.0) if "weight" in parts else 1.0
    options = {key: read(parts[key]) for key, read in _READERS.items() if key in parts}
    direction = parts["direction"].one_of(("higher", "lower"), "direction") if "direction" in parts else None
    return SliceSpec(
        name=name,
        task=parts["task"].text() if "task" in parts else None,
        python=_function(parts["python"]) if "python" in parts else _scorer(parts.get("scorer")),
        command=_command(parts) if "command" in parts else None,
        scorer=parts["scorer"].text() if "scorer" in parts else None,
        data=resolve(parts["data"]) if "data" in parts else None,
        measure=cast(Measure, parts["measure"].one_of(MEASURES, "measure")) if "measure" in parts else None,
        metric=metric,
        direction=cast(Literal["higher", "lower"] | None, direction),
        floor=_floor(parts["floor"], metric) if "floor" in parts else None,
        weight=weight,
        of=parts["of"].text() if "of" in parts else None,
        samples=parts["samples"].integer(1, MOST_SAMPLES) if "samples" in parts else 1,
        pass_at=_pass_at(parts),
        items=parts["items"].integer(1) if "items" in parts else None,
        cluster=parts["cluster"].text() if "cluster" in parts else None,
        range=_range(parts["range"]) if "range" in parts else None,
        timeout=read_seconds(parts["timeout"]) if "timeout" in parts else LONGEST if "command" in parts else None,
        engine=_engine(parts),
        options=options,
        where=node.where,
        lines={k: n.where for k, n in parts.items()},
    )


def _engine(parts: dict[str, Node]) -> Engine | None:
    return cast(Engine, parts["engine"].one_of(ENGINES, "engine")) if "engine" in parts else None


def _pass_at(parts: dict[str, Node]) -> int | None:
    """Reads how many samples are looked at for one that passes."""
    for key in ("samples", "pass_at"):
        if key in parts and "task" not in parts:
            parts[key].fail("only goes with an lm-eval `task` that generates text", "remove it")
    if "pass_at" not in parts:
        return None
    samples = parts["samples"].integer(1, MOST_SAMPLES) if "samples" in parts else 1
    if samples < 2:
        parts["pass_at"].fail("needs `samples`, of which it looks at so many", "add for example samples: 8")
    return parts["pass_at"].integer(1, samples)


def _check_replies(node: Node, parts: dict[str, Node]) -> None:
    """InputError where a slice that measures another one's answers is given what belongs to that one."""
    for key, part in parts.items():
        if key not in _OF_REPLIES:
            part.fail(f"is that of slice {parts['of'].value!r}, whose answers are measured", "remove it")
    if "metric" not in parts:
        node.fail("has no 'metric'", f"add `metric: {LENGTHS[0]}` or `metric: {LENGTHS[1]}`")
    parts["metric"].one_of(LENGTHS, "metric of another slice's answers")


def _measured(spec: SliceSpec, slices: Mapping[str, SliceSpec]) -> SliceSpec:
    """The slice with the task and the options of the one whose answers it measures. InputError where that has none."""
    asked = slices.get(spec.of or "")
    if asked is None or asked is spec:
        others = [name for name in slices if name != spec.name]
        raise InputError(f"there is no other slice {spec.of!r}", suggestion(spec.of or "", others), spec.at("of"))
    if asked.task is None:
        raise InputError(f"slice {spec.of!r} is no lm-eval task", "name one that generates text", spec.at("of"))
    options = {key: value for key, value in asked.options.items() if key != "filter"}
    return replace(
        spec,
        task=asked.task,
        items=asked.items,
        samples=asked.samples,
        cluster=asked.cluster,
        engine=asked.engine,
        options=options,
    )


def _range(node: Node) -> tuple[float, float]:
    ends = [entry.number() for entry in node.sequence()]
    if len(ends) != 2 or ends[0] >= ends[1]:
        node.fail("is no range", "give the lowest and the highest score of an item, such as [0, 1]")
    return ends[0], ends[1]


def _check_callable(node: Node, parts: dict[str, Node]) -> None:
    if "data" not in parts:
        node.fail("has no 'data'", "name the JSONL file of the items that are scored")
    for key in SLICE_OPTIONS:
        if key in parts:
            parts[key].fail("only goes with an lm-eval `task`", "remove it")


def _command(parts: dict[str, Node]) -> Command:
    """Reads a command line, which no shell reads later, and the folder that it is run in: the fitness file's."""
    node = parts["command"]
    try:
        arguments = shlex.split(node.text())
    except ValueError as error:
        node.fail(f"is no command line ({error})", "close each quotation mark")
    if not arguments:
        node.fail("is empty", "write for example my-eval --model {model} --items {items} --out {scores}")
    folder = resolve(parts["cwd"]) if "cwd" in parts else resolve(node, ".")
    if not folder.is_dir():
        parts["cwd"].fail(f"no such folder: {folder}", "name the folder that the command is run in")
    command = Command(node.text(), tuple(arguments), folder)
    for name in dict.fromkeys(found[1] for part in arguments for found in PLACEHOLDER.finditer(part) if found[1]):
        if name not in PLACEHOLDERS:
            mend = f"{suggestion(name, PLACEHOLDERS)}; a brace that means itself is written twice"
            node.fail(f"has an unknown {{{name}}}", mend)
    for names in (("model", "url"), ("scores",)):
        if not any(map(command.uses, names)):
            name = names[0]
            node.fail(f"has no {{{name}}}, {PLACEHOLDERS[name]}", f"add {{{name}}} where the program takes it")
    return command


def _check_measure(parts: dict[str, Node]) -> None:
    """InputError where a slice that measures a size is given what belongs to items or metrics."""
    for key, node in parts.items():
        if key not in _OF_MEASURES:
            node.fail("does not go with `measure`, which has no items and no metric", "remove it")
    floor = parts.get("floor")
    if floor is not None and as_number(floor.value) is not None and floor.number() < 1:
        problem = f"{floor.shown()} is less than any model has: the floor of a measure is the most that is allowed"
        floor.fail(problem, f"give the largest number of {parts['measure'].value}")


def _check_no_language_model(slices: dict[str, SliceSpec]) -> None:
    """InputError where a slice needs a language model."""
    for spec in slices.values():
        if spec.task is not None:
            problem = f"the lm-eval task {spec.task!r} needs a language model, and `model` builds another one"
            raise InputError(problem, "score with `python` instead, or remove `model`", spec.at("task"))
        if spec.measure == "layers":
            problem = "the layers are those of a language model, and `model` builds another one"
            raise InputError(problem, "use `measure: parameters`, or remove `model`", spec.at("measure"))


def _function(node: Node) -> FunctionRef:
    """Reads ``module:function``, its module beside the fitness file, or ``path/to/file.py:function``."""
    module, colon, function = node.text().rpartition(":")
    if not colon or not module.strip() or not function.isidentifier():
        node.fail(f"{node.value!r} is not module:function", "write for example my_fitness:score")
    file = module if module.endswith(".py") else f"{module.replace('.', '/')}.py"
    return FunctionRef(resolve(node, file), function, node.where)


def _scorer(node: Node | None) -> FunctionRef | None:
    """Reads the name of a scorer that another package adds."""
    if node is None:
        return None
    module, _, function = scorers()[node.one_of(tuple(scorers()), "scorer")].partition(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        node.fail(f"the module {module} has no file", "install its package again")
    return FunctionRef(Path(spec.origin), function, node.where, module)


def _generation(node: Node) -> Any:
    """Reads generation arguments: a mapping, or lm-eval's ``a=1,b=2``."""
    if not isinstance(node.value, str):
        node.mapping()
    elif not all(name.strip() and equals for name, equals, _ in (p.partition("=") for p in node.value.split(","))):
        node.fail(f"{node.value!r} is not a=1,b=2", "write a mapping, such as {max_gen_toks: 32}")
    return node.data


def _keep(node: Node) -> float:
    _check_no_percentage(node, 10, 1000)
    return node.number(0.0, 10.0)


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
    parts = node.declared(FLOOR)
    if ("keep" in parts) == ("margin" in parts):
        node.fail("needs either `keep` (a ratio) or `margin` (a distance)", "give one of them")
    return FloorSpec(
        of=parts["of"].text(),
        keep=_keep(parts["keep"]) if "keep" in parts else None,
        margin=parts["margin"].number() if "margin" in parts else None,
        where=parts["of"].where,
    )
