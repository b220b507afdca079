"""Checks a fitness file in a moment: without torch, lm-eval and the tasks' data, and without transformers where the
generation arguments are common ones."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evomerge.checkpoints.checkpoint import IMAGE_FILES, Checkpoint
from evomerge.errors import InputError, nearest, suggestion
from evomerge.escape import quoted, shortened
from evomerge.files.objects import FitnessSpec, FunctionRef, SliceSpec
from evomerge.safety.read import read_text
from evomerge.scoring.commands.line import check_program
from evomerge.scoring.item_files import cluster_names, deal_items, read_items
from evomerge.scoring.measures import mixture
from evomerge.scoring.serving.choice import check_installed
from evomerge.scoring.splits import SIDES
from evomerge.scoring.tasks.built_in import built_in_names, is_built_in
from evomerge.scoring.tasks.constants import constant_fields
from evomerge.scoring.tasks.generation_arguments import check_arguments
from evomerge.scoring.tasks.task_files import (
    SPLITS,
    LocalTasks,
    TaskFile,
    data_splits,
    missing_data,
    scan,
)
from evomerge.scoring.tasks.task_keys import check_keys
from evomerge.scoring.tasks.trust import check_trust

_DEFAULT_METRICS = {
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
}
"""What lm-eval reports where a task has no `metric_list` (lm_eval.api.registry.DEFAULT_METRIC_REGISTRY)."""

SCORER_TAKES = ("model", "tokenizer", "items")
MODEL_TAKES = ("state", "folder")
"""What the user's functions are called with, by position."""


def check_fitness(fitness: FitnessSpec, sources: Iterable[str]) -> None:
    """Checks all that can be checked without running anything: names of tasks, metrics, filters and generation
    arguments, data and splits, the models that floors are relative to, the definitions of functions.

    Args:
        fitness: the fitness file.
        sources: the names that floors may refer to besides "base" and "best_source".

    Raises:
        InputError: something is wrong; with file, line and key.
    """
    check_floors(fitness, sources)
    check_objective(fitness, {name: -1 if spec.measure else 1 for name, spec in fitness.slices.items()})
    if fitness.model is not None:
        check_function(fitness.model, MODEL_TAKES)
    local = scan(fitness.include, fitness.at("include"))
    for spec in fitness.slices.values():
        if spec.measure is not None:
            continue
        if spec.task is None:
            check_items(fitness, spec, check_scorer(spec))
        else:
            if fitness.engine_of(spec) == "vllm":
                check_installed(spec.lines.get("engine") or fitness.at("engine"))
            check_trust(fitness, spec.task or "", local, spec.at("task"))
            check_task(spec, local)


def doubts(fitness: FitnessSpec) -> list[str]:
    """What local tasks probably do otherwise than their authors meant, as far as their YAML and the first row of their
    data show it, and objectives that add sizes to scores; a line each, with its place."""
    local = scan(fitness.include)
    lines = []
    for spec in fitness.slices.values():
        if mixed := mixture(fitness, spec):
            lines.append(f"{spec.at('measure')}: {mixed}")
        for leaf in local.closure(spec.task)[0] if spec.task is not None else ():
            constant = constant_fields(leaf)
            lines += [f"{spec.at('task')}: task {leaf.config['task']!r}: {constant}"] if constant else []
    return lines


def check_floors(fitness: FitnessSpec, sources: Iterable[str]) -> None:
    """InputError where a floor is relative to a model that is not in the search."""
    legal = ["base", "best_source", *sources]
    for spec in fitness.slices.values():
        if spec.floor and spec.floor.of and spec.floor.of not in legal:
            problem = f"floor relative to an unknown source {spec.floor.of!r}"
            raise InputError(problem, suggestion(spec.floor.of, legal), spec.floor.where)


def check_weights(fitness: FitnessSpec) -> None:
    if all(spec.weight <= 0 for spec in fitness.slices.values()):
        raise InputError("no slice has a weight above 0", "give at least one a weight", fitness.at("slices"))


def check_objective(fitness: FitnessSpec, signs: Mapping[str, int]) -> None:
    """InputError where the objective does not fit the slices. `signs`: -1 where a lower score is better."""
    check_weights(fitness)
    if fitness.objective != "geometric_mean":
        return
    for name, spec in fitness.slices.items():
        if signs[name] < 0 and spec.weight > 0:
            better = f"fewer {spec.measure} are better" if spec.measure else f"a lower {spec.metric} is better"
            problem = f"geometric_mean cannot hold slice {name!r}: {better}"
            raise InputError(problem, "use mean, weighted_mean or min, or give it weight 0", fitness.at("objective"))


def check_scorer(spec: SliceSpec) -> list[dict[str, Any]]:
    """Reads the items of a function or a command. InputError where the function's file (read, not run), the program or
    the data is not what it should be."""
    if spec.python is not None:
        check_function(spec.python, SCORER_TAKES)
    if spec.command is not None:
        check_program(spec)
        if spec.command is not None and spec.command.uses("url"):
            check_installed(spec.at("command"), "use {model}, the candidate's folder, in place of {url}")
    if spec.data is None or not spec.data.is_file():
        raise InputError(f"no data file {spec.data}", "name a JSONL file", spec.at("data"))
    return read_items(spec.data)


def check_items(fitness: FitnessSpec, spec: SliceSpec, items: list[dict[str, Any]]) -> None:
    """InputError where a split gets none of a callable's items, or they lack the field of `cluster`."""
    if spec.cluster is not None:
        cluster_names(spec, items)
    deal = deal_items(fitness, spec, items)
    for side in SIDES:
        check_count(spec, side, len(deal.items(side)), len(items), fitness.confidence)


def check_count(spec: SliceSpec, split: str, count: int, total: int, confidence: float | None) -> None:
    """InputError where a split has too few items."""
    if not count:
        problem = f"slice {spec.name!r} has no items in the {split} split (of {total} in all)"
        raise InputError(problem, "give it more items or change `split`", spec.where)
    if confidence is not None and spec.floor is not None and count < 2:
        problem = f"`confidence` needs a standard error, and one item of the {split} split gives none"
        raise InputError(problem, "give the slice more items, or no floor", spec.where)


def check_function(ref: FunctionRef, takes: Sequence[str]) -> None:
    """InputError where the function's file does not define it, or it cannot be called with `takes`, by position. The
    file is read, not run."""
    file, where = ref.script, ref.where
    if not file.is_file():
        near = [path.stem for path in file.parent.glob("*.py")] if file.parent.is_dir() else []
        close = nearest(file.stem, near)
        raise InputError(f"no file {file}", f"did you mean {close!r}?" if close else "create it", where)
    try:
        tree = ast.parse(read_text(file, where))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{file} is not valid Python ({error})", "mend it", where) from None
    defined = _defined(tree)
    if ref.function not in defined:
        raise InputError(f"{file} defines no {ref.function!r}", suggestion(ref.function, defined), where)
    _check_definition(defined[ref.function], ref, f"it is called as {ref.function}({', '.join(takes)})", len(takes))


def _check_definition(node: ast.stmt, ref: FunctionRef, called: str, count: int) -> None:
    """InputError for what the text of a definition shows; decorators, classes and imports would have to be run."""
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
        raise InputError(f"{ref.name} is not callable", "name a function", ref.where)
    if isinstance(node, ast.AsyncFunctionDef):
        raise InputError(f"{ref.name} is a coroutine, and {called}", "remove `async`", ref.where)
    if isinstance(node, ast.FunctionDef) and not node.decorator_list and not _fits(node.args, count):
        raise InputError(f"{ref.name} does not fit: {called}", f"mend {ref.script}", ref.where)


def _fits(parameters: ast.arguments, count: int) -> bool:
    """Whether the parameters take `count` arguments by position, and need no others."""
    positional = len(parameters.posonlyargs) + len(parameters.args)
    needed = positional - len(parameters.defaults)
    enough = needed <= count and (parameters.vararg is not None or count <= positional)
    return enough and None not in parameters.kw_defaults


def _defined(tree: ast.Module) -> dict[str, ast.stmt]:
    """Maps each name at the top level of a module to the last statement that defines it."""
    definitions: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            definitions.update((alias.asname or alias.name, node) for alias in node.names)
        elif isinstance(node, ast.Assign):
            definitions.update((target.id, node) for target in node.targets if isinstance(target, ast.Name))
    return definitions


def check_task(spec: SliceSpec, local: LocalTasks) -> None:
    """InputError where the task or its data does not exist, or a local task is wrong or does not report the metric."""
    name = spec.task or ""
    check_name(spec, name, local)
    leaves, foreign = local.closure(name)
    for other in foreign - {name}:
        check_name(spec, other, local)
    for leaf in leaves:
        check_keys(leaf, spec.at("task"))
        for path in missing_data(leaf):
            there = "is empty:" if os.path.isfile(path) else "is no regular file:"
            lack = there if os.path.exists(path) else "is missing: no"
            problem = f"the data of task {leaf.config['task']!r} {lack} {shortened(path)}"
            raise InputError(problem, f"mend {leaf.path} (paths there are relative to its folder)", spec.at("task"))
        _check_splits(spec, leaf)
        if spec.of is None:
            _check_metric(spec, leaf)
        elif not _generates(leaf):
            problem = f"task {leaf.config['task']!r} of slice {spec.of!r} generates no text that has a length"
            raise InputError(problem, "name a slice of generated answers", spec.at("of"))
        _check_generation(spec, leaf)
        if leaf.config.get("doc_to_image") is not None:
            shots = spec.options.get("num_fewshot", leaf.config.get("num_fewshot"))
            check_images(leaf.config["task"], leaf.config.get("output_type"), shots, spec)
    if "gen_kwargs" in spec.options:
        check_arguments(spec.options["gen_kwargs"], spec.at("gen_kwargs"))
        if leaves and not foreign and not any(map(_generates, leaves)):
            raise InputError(f"task {name!r} generates no text", "remove it", spec.at("gen_kwargs"))


def check_images(name: str, kind: str | None, shots: int | None, spec: SliceSpec) -> None:
    """InputError where lm-eval cannot show a task's images: it asks for likelihoods without any, and shows the asked
    item's alone. `kind`: of its output; `shots`: its few-shot examples."""
    if kind not in (None, "generate_until"):
        problem = f"task {name!r} shows images and does not generate text; lm-eval runs no such tasks"
        raise InputError(problem, "give it output_type: generate_until", spec.at("task"))
    if shots:
        problem = f"task {name!r} shows images and has few-shot examples, which lm-eval shows without theirs"
        raise InputError(problem, "set num_fewshot: 0", spec.at("num_fewshot"))


def check_images_taken(fitness: FitnessSpec, base: Checkpoint) -> None:
    """InputError where local tasks show images, and the base, by its configuration and files, takes none."""
    local = scan(fitness.include)
    for spec in fitness.slices.values():
        leaves = local.closure(spec.task)[0] if spec.task is not None else ()
        if all(leaf.config.get("doc_to_image") is None for leaf in leaves):
            continue
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        kind = base.config.get("model_type")
        if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            problem = f"task {spec.task!r} shows images, and {base.reference}, a {quoted(kind)} model, takes none"
            raise InputError(problem, "merge vision-language models, or leave the slice out", spec.at("task"))
        if not any((base.path / file).is_file() for file in IMAGE_FILES):
            problem = f"task {spec.task!r} shows images, and {base.path} has no processor"
            raise InputError(problem, f"put {' or '.join(IMAGE_FILES)} of the original model there", spec.at("task"))


def check_name(spec: SliceSpec, name: str, local: LocalTasks) -> None:
    """InputError, with the nearest name, where neither the include folders nor lm-eval define a task."""
    if name in local.names or is_built_in(name):
        return
    broken = local.broken.get(name)
    if broken is not None:
        raise InputError(broken, "mend it", spec.at("task"))
    legal = local.names if nearest(name, local.names) else local.names | built_in_names()
    raise InputError(f"unknown task {name!r}", _mend_name(name, legal), spec.at("task"))


def _mend_name(name: str, legal: Iterable[str]) -> str:
    close = nearest(name, legal)
    return f"did you mean {close!r}?" if close else "name an lm-eval task, or `include` the folder of its YAML"


def _check_metric(spec: SliceSpec, leaf: TaskFile) -> None:
    metrics, filters = known_metrics(leaf.config), known_filters(leaf.config)
    metric, _, suffix = (spec.metric or "").partition(",")
    filter_name = suffix or spec.options.get("filter")
    key = "metric" if suffix else "filter"
    task = leaf.config["task"]
    if metrics is not None and metric not in metrics:
        raise InputError(f"task {task!r} has no metric {metric!r}", suggestion(metric, metrics), spec.at("metric"))
    if filter_name and filter_name not in filters:
        problem = f"task {task!r} has no filter {filter_name!r}"
        raise InputError(problem, suggestion(str(filter_name), filters), spec.at(key))


def _check_splits(spec: SliceSpec, leaf: TaskFile) -> None:
    """InputError where a task names no split to be scored, or a split that the data files it lists do not have."""
    config, where, mend = leaf.config, spec.at("task"), f"mend {leaf.path}"
    if config.get("class"):
        return
    if not config.get("test_split") and not config.get("validation_split"):
        problem = f"task {config['task']!r} has neither test nor validation items"
        raise InputError(problem, f"{mend}: add `test_split`", where)
    legal = data_splits(config)
    for key in SPLITS if legal else ():
        split = config.get(key)
        if isinstance(split, str) and split not in legal:
            problem = f"the data of task {config['task']!r} has no split {quoted(split)} ({key})"
            raise InputError(problem, f"{mend}: {suggestion(split, legal)}", where)


def _check_generation(spec: SliceSpec, leaf: TaskFile) -> None:
    settings = leaf.config.get("generation_kwargs")
    if settings is not None and _generates(leaf):
        check_arguments(settings, spec.at("task"), f" of task {leaf.config['task']!r} ({leaf.path})")


def _generates(leaf: TaskFile) -> bool:
    """Whether the task may let the model write."""
    return bool(leaf.config.get("class")) or leaf.config.get("output_type", "generate_until") == "generate_until"


def known_metrics(config: Any) -> list[str] | None:
    """The metrics that a local task reports, by its YAML alone; None where its code decides."""
    if config.get("process_results") or config.get("class"):
        return None
    kind = str(config.get("output_type", "generate_until"))
    entries = config.get("metric_list")
    if entries is None:
        return list(_DEFAULT_METRICS.get(kind, ())) or None
    if not isinstance(entries, list):
        return None
    names = [entry.get("metric") for entry in entries if isinstance(entry, dict)]
    if any(not isinstance(name, str) or name.startswith("!function") for name in names):
        return None
    # A metric that scores generated text may report several numbers under names of its own.
    if kind == "generate_until" and set(names) != {"exact_match"}:
        return None
    return [str(name) for name in names]


def known_filters(config: Any) -> list[str]:
    entries = config.get("filter_list")
    if not isinstance(entries, list):
        return ["none"]
    return [str(entry.get("name")) for entry in entries if isinstance(entry, dict)]
