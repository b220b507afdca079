"""Checks the values that keys of a task's YAML have, before lm-eval takes them for something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import InputError, Where, suggestion
from evomerge.escape import quoted
from evomerge.files.fitness_file import MOST_SHOTS
from evomerge.scoring.tasks.task_files import SPLITS, TaskFile

KINDS = ("loglikelihood", "loglikelihood_rolling", "multiple_choice", "generate_until")

MOST_REPEATS = 1000
"""Answers for each item. Published tasks ask for at most 64; each is a generation."""

_TEXT, _TEXTS = "a text", "a text, a list, or !function"
_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "task": ((str,), _TEXT),
    "dataset_path": ((str,), _TEXT),
    "dataset_kwargs": ((dict,), "a mapping"),
    **dict.fromkeys(SPLITS, ((str,), _TEXT)),
    "output_type": ((str,), f"one of {', '.join(KINDS)}"),
    "doc_to_text": ((str, int), "a text or !function"),
    "doc_to_target": ((str, int, list), _TEXTS),
    "doc_to_choice": ((str, list, dict), _TEXTS),
    "process_docs": ((str,), "!function"),
    "process_results": ((str,), "!function"),
    "metric_list": ((list,), "a list of {metric: NAME}"),
    "filter_list": ((list,), "a list of {name: NAME, filter: [...]}"),
    "fewshot_config": ((dict,), "a mapping"),
    "use_prompt": ((str,), _TEXT),
    **dict.fromkeys(("description", "target_delimiter", "fewshot_delimiter", "gen_prefix"), ((str,), _TEXT)),
}
"""Key -> (the types that lm-eval can read, in words)."""

_COUNTS = {"repeats": (1, MOST_REPEATS), "num_fewshot": (0, MOST_SHOTS)}


def check_keys(file: TaskFile, where: Where) -> None:
    """InputError where a key of a local task has a value that it cannot have. `where`: the place that names the
    task."""
    config = file.config
    for key, (types, wanted) in _KEYS.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            raise _wrong(file, key, value, wanted, where)
    kind = config.get("output_type")
    if kind is not None and kind not in KINDS:
        problem = f"output_type of task {_name(file)} is {quoted(kind)}"
        raise InputError(problem, f"mend {file.path}: {suggestion(kind, KINDS)}", where)
    for key in ("metric_list", "filter_list"):
        for entry in config.get(key) or ():
            if not isinstance(entry, Mapping):
                raise _wrong(file, key, entry, _KEYS[key][1], where)
    for key, (low, high) in _COUNTS.items():
        value = config.get(key)
        if value is None and (key not in config or key == "num_fewshot"):
            continue
        if type(value) is not int or value < low:
            raise _wrong(file, key, value, f"a whole number above {low - 1}", where)
        if value > high:
            raise _wrong(file, key, value, f"at most {high}", where)


def _wrong(file: TaskFile, key: str, value: Any, wanted: str, where: Where) -> InputError:
    problem = f"{key} of task {_name(file)} is {quoted(value)}, not {wanted}"
    return InputError(problem, f"mend {file.path}", where)


def _name(file: TaskFile) -> str:
    return quoted(file.config.get("task"))
