"""Reads lm-eval's task YAML without lm-eval: names, metrics, data files. ``!function`` stays a text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where
from evomerge.escape import quoted
from evomerge.files.nodes import Node
from evomerge.files.scalars import Schema
from evomerge.files.trees import LARGEST, load
from evomerge.safety.limits import OutOfTime, TimeLimit
from evomerge.safety.paths import absolute
from evomerge.safety.read import read_bytes

_MOST_VISITED = 100_000
"""Files and folders below the included ones. lm-eval's own 14,000 tasks are 18,000."""

_MOST_BYTES, _MOST_INCLUDES = 32 << 20, 100
"""Bytes of all task files (lm-eval's own have 7 MB; 32 MB are read in 15 s), and files that one task consists of."""

_BUILDERS = {"json", "csv", "parquet", "text", "arrow", "xml"}
"""Values of `dataset_path` that name a file format: `data_files` are then the user's files."""

SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
"""The keys of a task that name a split of its data."""

NAME = re.compile(rb"""^["']?(?:task|group)["']?[ \t]*:[ \t]*["']?([^\s"'\[{#]+)""", re.M)
"""The name of a task or group in the text of its file."""


@dataclass(frozen=True)
class TaskFile:
    """One task or group of a local folder.

    Attributes:
        path: the YAML file.
        config: its content, with the includes merged in.
        folders: the folders of the file and of its includes.
    """

    path: Path
    config: Mapping[str, Any]
    folders: tuple[Path, ...]

    @property
    def members(self) -> list[Any]:
        """The members of a group: names or mappings."""
        task = self.config.get("task")
        if "group" not in self.config or task is None:
            return []
        return task if isinstance(task, list) else [task]


@dataclass
class LocalTasks:
    """The tasks that the include folders define.

    Attributes:
        files: task or group name -> file.
        tags: tag -> its tasks.
        broken: the name of a task whose YAML could not be read -> what is wrong with that.
    """

    files: dict[str, TaskFile] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        return {*self.files, *self.tags}

    def closure(self, name: str) -> tuple[list[TaskFile], set[str]]:
        """Finds the local leaf tasks below `name`, and the names below it that are not local."""
        files, foreign = self.below(name)
        return [file for file in files if "group" not in file.config], foreign

    def below(self, name: str) -> tuple[list[TaskFile], set[str]]:
        """Finds the local tasks and groups below `name`, itself included, and the names that are not local."""
        files: dict[str, TaskFile] = {}
        foreign: set[str] = set()
        queue: list[str] = [name]
        seen: set[str] = set()
        while queue:
            current = queue.pop()
            if current in seen:
                continue
            seen.add(current)
            queue += self.tags.get(current, [])
            file = self.files.get(current)
            if file is None:
                foreign |= set() if current in self.tags else {current}
            else:
                files[current] = file
                queue += _member_names(file.members)
        return list(files.values()), foreign


def scan(folders: Iterable[Path], where: Where | None = None) -> LocalTasks:
    """Reads every ``*.yaml`` below the folders. Later folders override earlier ones, as in lm-eval. A file that cannot
    be read is only noted, as a search may not need it.

    Args:
        folders: the folders. Links to folders in them are not followed.
        where: the place that names them.

    Raises:
        InputError: there are far more files than tasks have.
    """
    tasks, reader = LocalTasks(), _Reader()
    for path in _yaml_files(folders, where):
        reader.size += os.path.getsize(path) if os.path.isfile(path) else 0
        if reader.size > _MOST_BYTES:
            problem = f"the YAML files up to {path} have more than {_MOST_BYTES / 1e6:.0f} MB"
            raise InputError(problem, "include only the folder of your tasks", where)
        try:
            config, origins = reader.read(path)
        except InputError as error:
            fault = f"the task file {_fault(error)}"
            tasks.broken.update(dict.fromkeys(_likely_names(path), fault))
            continue
        _register(tasks, TaskFile(path, config, tuple(origins)))
    return tasks


def _yaml_files(folders: Iterable[Path], where: Where | None) -> Iterator[Path]:
    """The YAML files below each folder, in order."""
    visited = 0
    for folder in folders:
        files: list[Path] = []
        for root, inner, names in os.walk(folder):
            visited += len(inner) + len(names)
            if visited > _MOST_VISITED:
                problem = f"{folder} holds more than {_MOST_VISITED:,} files and folders"
                raise InputError(problem, "include only the folder of your tasks", where)
            files += [Path(root, name) for name in names if name.endswith(".yaml")]
        yield from sorted(files)


def _fault(error: InputError) -> str:
    """What is wrong with a file, and in which one: a task includes others."""
    where = error.where or Where()
    line = f"line {where.line}: " if where.line else ""
    key = f"{where.key}: " if where.key else ""
    return f"{where.file} cannot be read ({line}{key}{error.problem})"


def _likely_names(path: Path) -> set[str]:
    """The names that the task of a broken file may have: what its text says, and the file's name."""
    names = {path.stem, path.stem.lstrip("_")}
    with suppress(InputError):
        names |= {name.decode("utf-8", "replace") for name in NAME.findall(read_bytes(path, largest=LARGEST))}
    return names


def _register(tasks: LocalTasks, file: TaskFile) -> None:
    name = file.config.get("group") or file.config.get("task")
    if not isinstance(name, str):
        return  # a fragment that others include
    tasks.files[name] = file
    tags = file.config.get("tag")
    for tag in tags if isinstance(tags, list) else [tags]:
        if not isinstance(tag, str):
            continue
        members = tasks.tags.setdefault(tag, [])
        if "group" not in file.config and name not in members:
            members.append(name)


class _Reader:
    """Reads task YAML. A file that several include is parsed once.

    Attributes:
        size: the bytes of the files so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._parsed: dict[Path, Node] = {}

    def read(self, path: Path) -> tuple[dict[str, Any], list[Path]]:
        """Reads a task YAML, merges its includes as lm-eval does (local keys win), and returns the folders of all
        files. Raises InputError."""
        return self._read(path.resolve(), set())

    def _read(self, path: Path, seen: set[Path]) -> tuple[dict[str, Any], list[Path]]:
        """`seen`: the files that were met on the way to this one; lm-eval refuses to read one of them again."""
        if path in seen or len(seen) >= _MOST_INCLUDES:
            fault = "is included twice" if path in seen else f"is the file number {_MOST_INCLUDES + 1} of a task"
            raise InputError(fault, "include each file once", Where(path))
        seen.add(path)
        config = self._tree(path).data
        includes = config.pop("include", None) or []
        merged: dict[str, Any] = {}
        folders = [path.parent]
        for include in includes if isinstance(includes, list) else [includes]:
            where = Where(path, None, "include")
            if not isinstance(include, str):
                raise InputError(f"{quoted(include)} is no path", "name a file", where)
            inner, inner_folders = self._read(absolute(include, path.parent, where), seen)
            merged.update(inner)
            folders += inner_folders
        return {**merged, **config}, folders

    def _tree(self, path: Path) -> Node:
        if path not in self._parsed:
            tree = load(path, Schema.TASK, Where(path))
            tree.mapping()
            self._parsed[path] = tree
        return self._parsed[path]


# Data files


def anchor(config: dict[str, Any], folders: Iterable[Path]) -> None:
    """Makes the local data paths of a task's config absolute, in place. Relative paths start at the folder of the YAML
    or of an included YAML; lm-eval would start at the current directory."""
    places = list(folders)
    path = config.get("dataset_path")
    if isinstance(path, str) and _is_folder(path, places):
        config["dataset_path"] = str(_place(path, places))
    kwargs = config.get("dataset_kwargs")
    if isinstance(kwargs, dict) and _is_builder(path):
        kwargs = dict(kwargs)
        for key in ("data_files", "data_dir"):
            if key in kwargs:
                kwargs[key] = _map_paths(kwargs[key], places)
        config["dataset_kwargs"] = kwargs
    members = config.get("task")
    for member in members if isinstance(members, list) else []:
        if isinstance(member, dict):
            anchor(member, places)


def missing_data(file: TaskFile) -> list[Path]:
    """The local data files of a task that do not exist or are empty."""
    config = dict(file.config)
    anchor(config, file.folders)
    paths = []
    kwargs = config.get("dataset_kwargs")
    if isinstance(kwargs, dict) and _is_builder(config.get("dataset_path")):
        paths = [*_leaves(kwargs.get("data_files")), *_leaves(kwargs.get("data_dir"))]
    path = config.get("dataset_path")
    if isinstance(path, str) and path.startswith((".", "/", "~")):
        paths.append(path)
    return [Path(p) for p in paths if "://" not in p and (not _exists(Path(p)) or _is_empty(Path(p)))]


def json_lines(file: TaskFile) -> list[Path]:
    """The data files of a task that hold one JSON object a line."""
    config = dict(file.config)
    anchor(config, file.folders)
    kwargs = config.get("dataset_kwargs")
    if config.get("dataset_path") != "json" or not isinstance(kwargs, dict) or "field" in kwargs:
        return []
    return [path for text in _leaves(kwargs.get("data_files")) if (path := Path(text)).suffix == ".jsonl"]


def data_splits(config: Mapping[str, Any]) -> list[str]:
    """The splits of a task's data, where its YAML lists the files of each; else nothing. Files without the name of a
    split are the split "train" (datasets' rule)."""
    kwargs = config.get("dataset_kwargs")
    if not _is_builder(config.get("dataset_path")) or config.get("custom_dataset") or not isinstance(kwargs, dict):
        return []
    files = kwargs.get("data_files")
    if "split" in kwargs or "data_dir" in kwargs or not files:
        return []
    return [str(split) for split in files] if isinstance(files, dict) else ["train"]


def _map_paths(value: Any, places: list[Path]) -> Any:
    if isinstance(value, dict):
        return {k: _map_paths(v, places) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_map_paths(v, places) for v in value]
    return str(_place(value, places)) if isinstance(value, str) and "://" not in value else value


def _is_builder(path: Any) -> bool:
    return isinstance(path, str) and path in _BUILDERS


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)


def _place(text: str, places: list[Path]) -> Path:
    try:
        candidates = [absolute(text, place) for place in places]
    except InputError:  # it names nothing, wherever it starts
        return Path(text)
    return next((p for p in candidates if _exists(p)), candidates[0])


def _exists(path: Path) -> bool:
    """Whether a path, or a pattern, names something. A pattern that takes long is left to `datasets`."""
    if os.path.exists(path):
        return True
    pattern = str(path.relative_to(path.anchor))
    if not pattern or not any(c in pattern for c in "*?["):
        return False
    try:
        with TimeLimit(2):
            return any(True for _ in Path(path.anchor).glob(pattern))
    except OutOfTime:
        return True
    except (OSError, ValueError):  # `a**` is no pattern
        return False


def _is_empty(path: Path) -> bool:
    """Whether there is nothing to read: an empty file, or a device or a pipe, at which a reader might wait for ever."""
    if os.path.isfile(path):
        return os.path.getsize(path) == 0
    return os.path.exists(path) and not os.path.isdir(path)


def _is_folder(text: str, places: list[Path]) -> bool:
    return text not in _BUILDERS and (
        text.startswith((".", "/", "~")) or any(os.path.exists(place / text) for place in places)
    )


def _member_names(members: Iterable[Any]) -> list[str]:
    names: list[str] = []
    for member in members:
        if isinstance(member, str):
            names.append(member)
        elif isinstance(member, dict) and isinstance(member.get("task"), list):
            names += _member_names(member["task"])  # a group defined in its parent
        elif isinstance(member, dict) and "dataset_path" not in member:
            name = member.get("task") or member.get("group")
            names += [name] if isinstance(name, str) else []
    return names
