"""The fitness file that `evomerge init` writes: a slice for each task, with its usual metric and a relative floor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where
from evomerge.files.trees import as_scalar
from evomerge.safety.names import check_name
from evomerge.scoring.preflight import known_filters, known_metrics
from evomerge.scoring.tasks.built_in import built_in_tasks
from evomerge.scoring.tasks.task_files import LocalTasks, TaskFile, scan

_WHERE = Where("--tasks")
_USUAL = ("acc_norm", "acc", "exact_match", "f1", "mc2", "bits_per_byte", "byte_perplexity", "word_perplexity")
"""Metrics that a task is usually known by, the first of those that it has."""
_LOWER = ("bits_per_byte", "byte_perplexity", "word_perplexity", "perplexity", "brier_score", "ter", "wer")
_FILTERS = ("none", "flexible-extract", "strict-match")
_MOST_ITEMS = 300
_KEEP_SCORE, _KEEP_LOSS = 0.9, 0.98


@dataclass(frozen=True)
class StarterSlice:
    """A slice to be written. `metric`: with its filter, where the task has several; `lower`: whether less is better;
    `built_in`: whether it is a task of lm-eval's own."""

    name: str
    task: str
    metric: str
    lower: bool
    built_in: bool


@dataclass(frozen=True)
class StarterFitness:
    """Slices, and the folders of their task files."""

    slices: tuple[StarterSlice, ...]
    folders: tuple[Path, ...]


def choose_slices(tasks: Sequence[str]) -> StarterFitness:
    """A slice for each task.

    Args:
        tasks: names of lm-eval, or paths of task YAML.

    Raises:
        InputError: there is no such task, or it does not tell its metrics.
    """
    folders: dict[Path, LocalTasks] = {}
    slices: dict[str, StarterSlice] = {}
    made_of: dict[str, list[TaskFile]] = {}
    for text in tasks:
        file = Path(text).expanduser()
        if file.suffix in (".yaml", ".yml") or file.is_file():
            folder = Path(os.path.abspath(file)).parent
            local = folders.setdefault(folder, scan([folder], _WHERE))
            task, leaves, built_in = _named_in(file, local), None, False
            leaves = local.closure(task)[0]
        else:
            task, built_in = text, True
            leaves = built_in_tasks(text)
            if not leaves:
                mend = "name an lm-eval task, or give the path of a task file (.yaml)"
                raise InputError(f"lm-eval has no task {text!r}", mend, _WHERE)
        name = task.replace("/", "-").replace("\\", "-")
        check_name(name, "slice", _WHERE)
        slice_ = StarterSlice(name, task, *usual_metric(task, leaves), built_in)
        if name in slices and (slices[name] != slice_ or leaves != made_of[name]):
            problem = f"two different tasks are called {name!r}, and one fitness file can hold one of them"
            raise InputError(problem, "give one of them another name", _WHERE)
        slices[name], made_of[name] = slice_, leaves
    return StarterFitness(tuple(slices.values()), tuple(folders))


def _named_in(file: Path, local: LocalTasks) -> str:
    """The task that a file defines. InputError if it defines none."""
    if not file.is_file():
        raise InputError(f"there is no file {file}", "correct the path", _WHERE)
    found = [name for name, task in local.files.items() if task.path.resolve() == file.resolve()]
    if not found:
        broken = next((why for why in local.broken.values() if str(file.name) in why), None)
        raise InputError(broken or f"{file} defines no task", "give a file with a key `task`", _WHERE)
    return found[0]


def usual_metric(task: str, leaves: Sequence[TaskFile]) -> tuple[str, bool]:
    """The metric that a task is known by, with a filter where it has several; and whether less of it is better.

    Args:
        leaves: the tasks that it is made of.

    Raises:
        InputError: its files do not tell its metrics.
    """
    told = [names for leaf in leaves if (names := known_metrics(leaf.config) or _listed(leaf.config))]
    if not told:
        mend = "write the slice yourself (docs/files.md), and give the file by --fitness"
        raise InputError(f"task {task!r} does not tell its metrics in its YAML", mend, _WHERE)
    common = [name for name in told[0] if all(name in names for names in told)]
    if not common:
        shown = ", ".join(dict.fromkeys(name for names in told for name in names))
        problem = f"the {len(leaves)} tasks of {task!r} have no metric in common (they have {shown})"
        raise InputError(problem, "name those of its tasks that count", _WHERE)
    metric = next((name for name in _USUAL if name in common), common[0])
    filters = known_filters(leaves[0].config)
    lower = metric in _LOWER or _stated_lower(metric, leaves[0].config)
    if len(filters) < 2:
        return metric, lower
    chosen = next((name for name in _FILTERS if name in filters), filters[0])
    return f"{metric},{chosen}", lower


def _listed(config: Mapping[str, Any]) -> list[str]:
    """The names in a task's `metric_list`, whatever its code makes of them."""
    entries = config.get("metric_list")
    names = [entry.get("metric") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [name for name in names if isinstance(name, str) and not name.startswith("!function")]


def _stated_lower(metric: str, config: Mapping[str, Any]) -> bool:
    entries = config.get("metric_list")
    stated = (
        [e for e in entries if isinstance(e, dict) and e.get("metric") == metric] if isinstance(entries, list) else []
    )
    return bool(stated) and stated[0].get("higher_is_better") is False


def fitness_text(fitness: StarterFitness, file: Path) -> str:
    """The text of the fitness file that is to be at `file`."""
    folders = [f"  - {as_scalar(os.path.relpath(folder, file.parent))}" for folder in fitness.folders]
    lines = [
        "# What a merge must be able to do: written by `evomerge init`, to be changed. Every key: docs/files.md",
        *(
            ["include:                       # folders with lm-eval task YAML, relative to this file", *folders]
            if folders
            else []
        ),
        "objective: mean                # of the slices; mean | weighted_mean | geometric_mean | min | pareto",
        *_mixed(fitness.slices),
        "split: {search: 0.5, seed: 0}  # one half of the items steers the search, the other decides",
        "batch_size: 16",
        "slices:",
    ]
    for slice_ in fitness.slices:
        lines += [
            f"  {as_scalar(slice_.name)}:",
            f"    task: {as_scalar(slice_.task)}",
            f"    metric: {as_scalar(slice_.metric)}",
            *([f"    items: {_MOST_ITEMS}                 # of the task's; without this line all"] * slice_.built_in),
            *_floor(slice_.lower),
        ]
    return "\n".join(lines) + "\n"


def _mixed(slices: Sequence[StarterSlice]) -> list[str]:
    """What a mean of losses and scores means."""
    if len({slice_.lower for slice_ in slices}) < 2:
        return []
    return [
        "# Losses (which count negatively) and scores have other units, and their mean says little: give `weight: 0`",
        "# to slices that only have to keep their floor.",
    ]


def _floor(lower: bool) -> list[str]:
    """A floor that a good merge reaches, and how to make it stricter."""
    if lower:
        return [
            f"    floor: {{of: base, keep: {_KEEP_LOSS}}}   # less is better: at most the base's / {_KEEP_LOSS}",
        ]
    return [
        f"    floor: {{of: best_source, keep: {_KEEP_SCORE}}}   # of what the best source scores; stricter: 0.95",
    ]
