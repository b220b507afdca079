"""Which code the tasks of a fitness file run, and whether it stands where the user said that it may.

Task YAML is code: `!function` names Python functions, and a metric or a data set can be a script of the hub. What
stands in the folders under `include` was chosen by the user, and lm-eval is an installed package. Anything else (a YAML
that is included from another folder, a function behind a link or ``../``, a script of the hub) is refused, unless the
user says `--trust-tasks`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where
from evomerge.escape import shortened
from evomerge.files.objects import FitnessSpec
from evomerge.scoring.tasks.task_files import LocalTasks, TaskFile, scan

FLAG = "--trust-tasks"
_FUNCTION = re.compile(r"!function\s+(\S+)")


@dataclass(frozen=True)
class Code:
    """Code that a task runs.

    Attributes:
        what: describes it: ``utils.py (process_docs)``.
        place: its file; None where it comes from the hub.
        installed: it belongs to an installed package or to Python.
    """

    what: str
    place: Path | None
    installed: bool = False


class TrustedFolders:
    """The folders whose code is run: those under `include`, and lm-eval's own."""

    def __init__(self, fitness: FitnessSpec) -> None:
        spec = importlib.util.find_spec("lm_eval")
        own = [Path(folder).resolve() for folder in (spec.submodule_search_locations or ())] if spec else []
        self._folders = [folder.resolve() for folder in fitness.include] + own
        self._any = fitness.trust_tasks

    def hold(self, file: Path) -> bool:
        """Whether a file stands in one of them, once links are followed; any does where the user trusts them."""
        return self._any or any(file.resolve().is_relative_to(folder) for folder in self._folders)

    def check(self, code: Code, task: str, where: Where) -> None:
        """InputError where code is not in them."""
        if code.installed or self._any or (code.place is not None and self.hold(code.place)):
            return
        source = f"in {code.place.resolve()}, outside of the folders under `include`" if code.place else "on the hub"
        mend = f"`include` its folder, or say {FLAG}" if code.place else f"say {FLAG} if you trust it"
        raise InputError(f"task {task!r} runs code {source}: {code.what}", mend, where)


def check_trust(fitness: FitnessSpec, name: str, local: LocalTasks, where: Where) -> None:
    """InputError where a task, or one below it, runs code from elsewhere. It is not run here."""
    trusted = TrustedFolders(fitness)
    for file in local.below(name)[0]:
        for code in code_of(file):
            trusted.check(code, str(file.config.get("task") or file.config.get("group")), where)


def code_listed(fitness: FitnessSpec) -> list[str]:
    """The code that a fitness file runs, a line each: Python functions, commands, and what its local tasks name."""
    refs = [fitness.model, *(spec.python for spec in fitness.slices.values())]
    lines = {f"{ref.script} ({ref.function})": None for ref in refs if ref is not None}
    lines.update((spec.command.text, None) for spec in fitness.slices.values() if spec.command is not None)
    local = scan(fitness.include)
    for spec in fitness.slices.values():
        for file in local.below(spec.task)[0] if spec.task is not None else ():
            lines.update((code.what, None) for code in _run_by(file))
    return list(lines)


def code_of(file: TaskFile) -> Iterator[Code]:
    """The code of a task or group of a local folder: its YAML, and what that runs."""
    yield Code(str(file.path), file.path.resolve())
    for folder in file.folders:
        yield Code(f"{file.path} includes YAML of {folder}", folder)
    yield from _run_by(file)


def _run_by(file: TaskFile) -> Iterator[Code]:
    for key, function in _functions(file.config):
        yield from functions(function, file.folders, key)
    yield from _hub_code(file.config)
    prompt = file.config.get("use_prompt")
    if isinstance(prompt, str) and ".yaml" in prompt:
        path = Path(prompt.partition(":")[0])
        yield Code(f"{path} (use_prompt)", path)


def functions(name: str, folders: Iterable[Path], key: str = "!function") -> Iterator[Code]:
    """The files that `!function NAME` may mean: beside the YAML or a YAML that it includes, else a module that Python
    finds."""
    module = name.rpartition(".")[0]
    found = False
    for folder in dict.fromkeys(folders):
        file = folder / f"{module.replace('.', '/')}.py"
        if file.exists():
            found = True
            yield Code(f"{file.resolve()} ({key})", file)
    if not found:
        yield _importable(module, f"{name} ({key})")


def _importable(module: str, what: str) -> Code:
    """A module that is imported by its name. Only the top of it is looked for, as parents would be run."""
    top = module.partition(".")[0]
    spec = None
    with suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(top)
    if spec is None:
        return Code(what, None, installed=True)  # lm-eval will say that there is none
    if spec.origin in (None, "built-in", "frozen"):
        places = [Path(place) for place in spec.submodule_search_locations or ()]
        return Code(what, places[0] if places else None, installed=not places or _is_installed(places[0]))
    place = Path(str(spec.origin))
    return Code(what, place, _is_installed(place))


def _is_installed(place: Path) -> bool:
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")}
    return any(place.resolve().is_relative_to(Path(folder).resolve()) for folder in folders if folder)


def _functions(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, name) of each `!function` in a config."""
    if isinstance(config, str):
        match = _FUNCTION.fullmatch(config.strip())
        if match:
            yield key, match[1]
    elif isinstance(config, Mapping):
        for inner, value in config.items():
            yield from _functions(value, str(inner))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _functions(value, key)


def _hub_code(config: Mapping[str, Any]) -> Iterator[Code]:
    """Scripts that are downloaded and run: metrics of the `evaluate` library, and data sets, before `datasets` 4."""
    metrics = config.get("metric_list")
    for entry in metrics if isinstance(metrics, list) else ():
        if isinstance(entry, Mapping) and entry.get("hf_evaluate") is True:
            yield Code(f"the metric {shortened(entry.get('metric'), 60)} (hf_evaluate)", None)
    kwargs, path = config.get("dataset_kwargs"), config.get("dataset_path")
    scripts = int(importlib.metadata.version("datasets").partition(".")[0]) < 4
    if scripts and isinstance(kwargs, Mapping) and kwargs.get("trust_remote_code"):
        yield Code(f"the data set {shortened(path, 60)} (trust_remote_code)", None)
    if scripts and isinstance(path, str) and path.endswith(".py"):
        yield Code(f"{path} (dataset_path)", Path(path))
    members = config.get("task")
    for member in members if isinstance(members, list) else ():
        if isinstance(member, Mapping):
            yield from _hub_code(member)
