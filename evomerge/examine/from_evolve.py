"""Converts a configuration of mergekit-evolve (mergekit 0.1.5, `mergekit.evo.config`) into a search space and a fitness
file, and says what has no counterpart."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.tokenizer import chat_template
from evomerge.errors import InputError, Where
from evomerge.escape import printable
from evomerge.examine.checks.parents import named
from evomerge.examine.starter_space import reference as seen_from
from evomerge.files.nodes import Node
from evomerge.files.trees import load
from evomerge.recipe.values import is_set, reference
from evomerge.safety.names import name_fault
from evomerge.scoring.tasks.built_in import is_built_in
from evomerge.scoring.tasks.task_files import scan

_METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
_GENOME = ("models", "merge_method", "base_model", "tokenizer_source", "layer_granularity", "normalize",
           "allow_negative_weights", "filters", "smooth")  # fmt: skip
_KEYS = ("genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template",
         "fewshot_as_multiturn")  # fmt: skip
_NORMALIZED = ("linear", "ties", "dare_ties")
_TRIALS = 100
"""mergekit-evolve's `--max-fevals`."""
_HIGHEST = 1.2


@dataclass
class Converted:
    """The two files as plain values, and lines on what could not be kept."""

    space: dict[str, Any] = field(default_factory=dict)
    fitness: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def texts(self, space: Path, fitness: Path, source: Path) -> dict[Path, str]:
        """The texts of both files, which are to be at these paths."""
        header = [f"converted from {source.name} of mergekit-evolve by `evomerge init`", *self.notes]
        data = {**self.space, "fitness": os.path.relpath(fitness, space.parent)}
        return {space: _text(header, data), fitness: _text(header[:1], self.fitness)}


def convert(file: Path, space: Path, fitness: Path, trials: int | None = None) -> Converted:
    """Converts a configuration.

    Args:
        file: the configuration; its tasks may be defined by YAML in its folder.
        space, fitness: where the two files are to be.
        trials: the budget (default: 100, as there).

    Raises:
        InputError: the file is none of mergekit-evolve's, or its models cannot be opened.
    """
    root = load(file).mapping()
    if "genome" not in root or "tasks" not in root:
        problem = "is no configuration of mergekit-evolve: it needs genome and tasks"
        raise InputError(problem, "give the file that mergekit-evolve takes", Where(file))
    told = Converted()
    genome = root["genome"].mapping()
    told.notes += [f"no counterpart: {key}" for key in root if key not in _KEYS]
    told.notes += [f"no counterpart: genome.{key}" for key in genome if key not in _GENOME]
    base = _space(told, root["genome"], genome, space, _TRIALS if trials is None else trials)
    _fitness(told, root, file, fitness, base)
    return told


def _space(told: Converted, node: Node, genome: Mapping[str, Node], space: Path, trials: int) -> Checkpoint:
    for key in ("models", "merge_method"):
        if not is_set(genome.get(key)):
            node.fail(f"{key} is missing", "add it")
    method = genome["merge_method"].one_of(_METHODS, "merge method")
    models = [reference(model) for model in genome["models"].sequence()]
    stated = reference(genome["base_model"]) if is_set(genome.get("base_model")) else None
    if stated is None and method not in ("linear", "slerp"):
        node.fail(f"{method} needs a base_model", "add it")
    if not models:
        genome["models"].fail("names no model", "list at least one")
    base = stated or models[0]
    sources = named([model for model in models if model != base])
    if not sources:
        genome["models"].fail("holds the base alone", "list its fine-tunes")
    if stated in models:
        told.notes.append("the base is a model, too: its weight changed nothing, and is no gene")
    where = genome["models"].where
    opened = {name: Checkpoint.open(model, where) for name, model in {"base": base, **sources}.items()}
    method, genes = _genes(told, genome, method, stated, len(models))
    told.space |= {
        "base": seen_from(opened["base"], space),
        "sources": {name: seen_from(opened[name], space) for name in sources},
        **_tokenizer(genome, {base: "base", **{model: name for name, model in sources.items()}}),
        "dtype": "bfloat16",
        **_layers(genome, opened["base"].layers),
        **_modules(genome),
        **({"interpolate": True} if _flag(genome, "smooth") else {}),
        "genes": {"method": method, **genes},
        **_fixed(told, genome, method),
        "optimizer": {"name": "cma-es", "seed": 0},
        "budget": {"trials": trials},
    }
    return opened["base"]


def _genes(
    told: Converted, genome: Mapping[str, Node], method: str, base: str | None, count: int
) -> tuple[str, dict[str, Any]]:
    """The method, and its genes over the axes that the genome has."""
    axes = [*(["layers"] if _granularity(genome) else []), *(["modules"] if _filters(genome) else [])]
    low = -1.0 if _flag(genome, "allow_negative_weights") else 0.0
    weight = {"low": low, "high": _HIGHEST, "init": round(1 / count, 4), "per": ["sources", *axes]}
    if method == "slerp":
        if _flag(genome, "smooth") or _filters(genome):
            genome["merge_method"].fail("slerp knows neither smooth nor filters", "remove them")
        if count == 2 and base is None:
            return "slerp", {"t": {"low": 0.0, "high": 1.0, "init": 0.5, **({"per": axes} if axes else {})}}
        told.notes.append("slerp of the two models with the largest values of several: written as multislerp of all")
        return "multislerp", {"weight": weight}
    if method == "linear" and base is None:
        told.notes.append("linear without a base: written as task_arithmetic from the first model, the same merges")
        method = "task_arithmetic"
    told.notes.append(f"weights were not bounded there; here they go from {low:g} to {_HIGHEST:g}")
    if method in ("ties", "dare_ties"):
        return method, {"weight": weight, "density": {"low": 0.0, "high": 1.0, "init": 1.0, "per": ["sources", *axes]}}
    return method, {"weight": weight}


def _fixed(told: Converted, genome: Mapping[str, Node], method: str) -> dict[str, Any]:
    was = genome["merge_method"].text()
    stated = genome["normalize"].boolean() if is_set(genome.get("normalize")) else None
    if method != was or method == "slerp":  # whose weights mean something else here
        if stated is not None:
            told.notes.append(f"no counterpart: genome.normalize of {was}")
        return {}
    return {"fixed": {"normalize": was in _NORMALIZED if stated is None else stated}}


def _tokenizer(genome: Mapping[str, Node], names: Mapping[str, str]) -> dict[str, str]:
    if not is_set(genome.get("tokenizer_source")):
        return {}
    source = genome["tokenizer_source"].text()
    name = source if source in ("base", "union") else names.get(source.removeprefix("model:"))
    if name is None:
        genome["tokenizer_source"].fail(f"{source} is no model of the genome", "name base, union or one of the models")
    return {"tokenizer": name}


def _layers(genome: Mapping[str, Node], layers: int) -> dict[str, int]:
    size = _granularity(genome)
    if not size:
        return {}
    if layers % size:
        genome["layer_granularity"].fail(f"the base's {layers} layers are no multiple of {size}", "give a divisor")
    return {"layers": layers // size}


def _granularity(genome: Mapping[str, Node]) -> int:
    return max(0, genome["layer_granularity"].integer()) if is_set(genome.get("layer_granularity")) else 0


def _filters(genome: Mapping[str, Node]) -> list[str]:
    return [node.text() for node in genome["filters"].sequence()] if is_set(genome.get("filters")) else []


def _modules(genome: Mapping[str, Node]) -> dict[str, Any]:
    """The filters as modules: the first that is found in a tensor's name wins, as there."""
    modules: dict[str, str] = {}
    for text in _filters(genome):
        plain = re.sub(r"[^\w-]+", "_", text).strip("_-") or "filter"
        name = next(n for n in (plain, *(f"{plain}-{i}" for i in range(2, 99))) if n not in modules and n != "other")
        modules[name] = text
    return {"modules": modules} if modules else {}


def _fitness(told: Converted, root: Mapping[str, Node], file: Path, fitness: Path, base: Checkpoint) -> None:
    slices: dict[str, Any] = {}
    local = scan([file.parent])
    options = _options(told, root, base)
    for node in root["tasks"].sequence():
        parts = node.mapping(["name"], ["weight", "metric"]) if isinstance(node.value, dict) else {"name": node}
        task = parts["name"].text()
        if task not in local.names and not is_built_in(task):
            problem = f"there is no task {task!r}, neither lm-eval's nor beside {file.name}"
            parts["name"].fail(problem, "copy its YAML there (mergekit-evolve took --task-search-path)")
        metric = parts["metric"].text() if is_set(parts.get("metric")) else "acc,none"
        weight = parts["weight"].number() if is_set(parts.get("weight")) else 1.0
        name = _slice_name(task, slices)
        slices[name] = {"task": task, "metric": metric.removesuffix(",none"), "weight": abs(weight), **options}
        if weight < 0:
            slices[name]["direction"] = "lower"
            told.notes.append(f"task {task} has a negative weight: written as a metric of which less is better")
    if not slices:
        root["tasks"].fail("names no task", "list at least one")
    told.notes.append("mergekit-evolve has no floors: a slice may have one (`floor: {of: best_source, keep: 0.9}`)")
    used = any(spec["task"] in local.names for spec in slices.values())
    told.fitness |= {
        **({"include": [os.path.relpath(file.parent, fitness.parent)]} if used else {}),
        "objective": "weighted_mean",
        "split": {"search": 0.5, "seed": 0},
        "slices": slices,
    }


def _options(told: Converted, root: Mapping[str, Node], base: Checkpoint) -> dict[str, Any]:
    """The keys of every slice, from those of the whole configuration."""
    options: dict[str, Any] = {}
    if is_set(root.get("limit")):
        options["items"] = root["limit"].integer(1)
    if is_set(root.get("num_fewshot")):
        options["num_fewshot"] = root["num_fewshot"].integer(0)
    stated = root["apply_chat_template"].boolean() if is_set(root.get("apply_chat_template")) else None
    if stated is not False:
        if chat_template(base) is not None:
            options["apply_chat_template"] = True
        else:
            told.notes.append("no counterpart: apply_chat_template, as the base has no chat template")
    if is_set(root.get("fewshot_as_multiturn")) and not root["fewshot_as_multiturn"].boolean():
        options["fewshot_as_multiturn"] = False
    if _flag(root, "shuffle"):
        told.notes.append("no counterpart: shuffle (items are dealt to both splits by a hash of each)")
    if _flag(root, "random_init"):
        told.notes.append("no counterpart: random_init (a search starts near the uniform average)")
    return options


def _slice_name(task: str, taken: Mapping[str, Any]) -> str:
    plain = re.sub(r"[/\\]", "-", task).lstrip(".-") or "task"
    if name_fault(plain):
        plain = "task"
    return next(n for n in (plain, *(f"{plain}-{i}" for i in range(2, 9999))) if n not in taken)


def _flag(parts: Mapping[str, Node], key: str) -> bool:
    return is_set(parts.get(key)) and parts[key].boolean()


def _text(header: list[str], data: Mapping[str, Any]) -> str:
    comments = "".join(f"# {printable(line)}\n" for line in header)
    return comments + yaml.safe_dump(dict(data), sort_keys=False, width=110, allow_unicode=True)
