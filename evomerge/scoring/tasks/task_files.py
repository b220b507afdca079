"""Reads lm-eval's task YAML without lm-eval: names, metrics, data files. ``!function`` stays a text."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_BUILDERS = {"json", "csv", "parquet", "text", "arrow", "xml"}
"""Values of `dataset_path` that name a file format: `data_files` are then the user's files."""

SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
"""The keys of a task that name a split of its data."""

_NAME = re.compile(rb"""^["']?(?:task|group)["']?[ \t]*:[ \t]*["']?([^\s"'\[{#]+)""", re.M)
_TAGS = re.compile(rb"""^["']?tag["']?[ \t]*:[ \t]*((?:\n?[ \t]*-[ \t]*[^\n]+)+|\[[^\]]*\]|[^\n#]+)""", re.M)
_WORD = re.compile(rb"""[^\s"',\[\]-][^\s"',\[\]]*""")


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
        broken: the YAML that could not be read -> the reason.
    """

    files: dict[str, TaskFile] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)
    broken: dict[Path, str] = field(default_factory=dict)

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


def scan(folders: Iterable[Path]) -> LocalTasks:
    """Reads every ``*.yaml`` below the folders. Later folders override earlier ones, as in lm-eval."""
    tasks = LocalTasks()
    for folder in folders:
        for path in sorted(folder.glob("**/*.yaml")):
            try:
                config, origins = read(path)
            except (OSError, ValueError, yaml.YAMLError) as error:
                tasks.broken[path] = " ".join(str(error).split())
                continue
            _register(tasks, TaskFile(path, config, tuple(origins)))
    return tasks


def _register(tasks: LocalTasks, file: TaskFile) -> None:
    name = file.config.get("group") or file.config.get("task")
    if not isinstance(name, str):
        return  # a fragment that others include
    tasks.files[name] = file
    tags = file.config.get("tag") or []
    for tag in [tags] if isinstance(tags, str) else tags:
        members = tasks.tags.setdefault(tag, [])
        if "group" not in file.config and name not in members:
            members.append(name)


def read(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """Reads a task YAML, merges its includes as lm-eval does (local keys win), and returns the folders of all files."""
    return _read(path.resolve(), frozenset())


def _read(path: Path, above: frozenset[Path]) -> tuple[dict[str, Any], list[Path]]:
    if path in above:
        raise ValueError(f"{path} includes itself")
    config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a mapping")
    merged: dict[str, Any] = {}
    folders = [path.parent]
    includes = config.pop("include", None) or []
    for include in includes if isinstance(includes, list) else [includes]:
        inner, inner_folders = _read((path.parent / include).resolve(), above | {path})
        merged.update(inner)
        folders += inner_folders
    return {**merged, **config}, folders


class _Loader(yaml.SafeLoader):
    """Reads YAML's plain types, and the tag `!function` as text."""


_Loader.add_constructor("!function", lambda loader, node: f"!function {node.value}")


# Data files


def anchor(config: dict[str, Any], folders: Iterable[Path]) -> None:
    """Makes the local data paths of a task's config absolute, in place. Relative paths start at the folder of the YAML
    or of an included YAML; lm-eval would start at the current directory."""
    places = list(folders)
    path = config.get("dataset_path")
    if isinstance(path, str) and _is_folder(path, places):
        config["dataset_path"] = str(_place(path, places))
    kwargs = config.get("dataset_kwargs")
    if isinstance(kwargs, dict) and path in _BUILDERS:
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
    if isinstance(kwargs, dict) and config.get("dataset_path") in _BUILDERS:
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
    if config.get("dataset_path") not in _BUILDERS or config.get("custom_dataset") or not isinstance(kwargs, dict):
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


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)


def _place(text: str, places: list[Path]) -> Path:
    candidates = [(place / Path(text).expanduser()).resolve() for place in places]
    return next((p for p in candidates if _exists(p)), candidates[0])


def _exists(path: Path) -> bool:
    if path.exists():
        return True
    pattern = str(path.relative_to(path.anchor))
    return any(c in pattern for c in "*?[") and any(True for _ in Path(path.anchor).glob(pattern))


def _is_empty(path: Path) -> bool:
    """Whether there is nothing to read: an empty file, or a device or a pipe, at which a reader might wait for ever."""
    return path.stat().st_size == 0 if path.is_file() else not path.is_dir() and path.exists()


def _is_folder(text: str, places: list[Path]) -> bool:
    return text not in _BUILDERS and (
        text.startswith((".", "/", "~")) or any((place / text).exists() for place in places)
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


# The tasks that come with lm-eval


def is_built_in(name: str) -> bool:
    """Whether lm-eval defines a task, group or tag of that name. Most names stand in a folder with the name of their
    first word (`arc_easy` in `arc`), which is read first: all 14,000 files would take 1 to 2 s."""
    folder = _built_in_folder()
    if folder is None:
        return False
    likely = folder.glob(f"{re.split('[_-]', name)[0]}*") if name[:1].isalnum() else ()
    return any(name in _names(path) for path in likely if path.is_dir()) or name in built_in_names()


@cache
def built_in_names() -> frozenset[str]:
    """Names of lm-eval's own tasks, groups and tags, from the text of its YAML (some 14,000 files, 1 to 2 s)."""
    folder = _built_in_folder()
    return _names(folder) if folder is not None else frozenset()


def _built_in_folder() -> Path | None:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _names(folder: Path) -> frozenset[str]:
    names: set[bytes] = set()
    for path in folder.rglob("*.yaml"):
        text = path.read_bytes()
        names.update(_NAME.findall(text))
        for tags in _TAGS.findall(text):
            names.update(_WORD.findall(tags))
    return frozenset(name.decode("utf-8", "replace") for name in names)
