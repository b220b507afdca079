"""The tasks that come with lm-eval: their names, from the text of its YAML, and their files."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from evomerge.scoring.tasks.task_files import NAME, TaskFile, scan

_TAGS = re.compile(rb"""^["']?tag["']?[ \t]*:[ \t]*((?:\n?[ \t]*-[ \t]*[^\n]+)+|\[[^\]]*\]|[^\n#]+)""", re.M)
_WORD = re.compile(rb"""[^\s"',\[\]-][^\s"',\[\]]*""")


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


def built_in_tasks(name: str) -> list[TaskFile]:
    """The leaf tasks of lm-eval's task, group or tag of that name, those in other folders included. Nothing where
    lm-eval has no such name."""
    leaves: dict[Path, TaskFile] = {}
    queue, seen = [name], set[str]()
    while queue:
        current = queue.pop()
        if current not in seen and is_built_in(current):
            below, foreign = scan(_folders_of(current)).closure(current)
            leaves |= {leaf.path: leaf for leaf in below}
            queue += foreign
        seen.add(current)
    return list(leaves.values())


def _folders_of(name: str) -> list[Path]:
    """The folder that defines one of lm-eval's tasks or groups, else those whose tasks have the tag. The others are
    not read: all would take a minute."""
    folder = _built_in_folder()
    assert folder is not None
    likely = [path for path in folder.glob(f"{re.split('[_-]', name)[0]}*") if path.is_dir()]
    tagged: dict[Path, None] = {}
    for file in (file for place in (*likely, folder) for file in sorted(place.rglob("*.yaml"))):
        text = file.read_bytes()
        if name.encode() in NAME.findall(text):
            return [file.parent]
        if name.encode() in _names_in(text):
            tagged[file.parent] = None
    return list(tagged)


def _built_in_folder() -> Path | None:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _names(folder: Path) -> frozenset[str]:
    names = {name for path in folder.rglob("*.yaml") for name in _names_in(path.read_bytes())}
    return frozenset(name.decode("utf-8", "replace") for name in names)


def _names_in(text: bytes) -> set[bytes]:
    """The names of tasks, groups and tags in the text of a task file."""
    return {*NAME.findall(text), *(word for tags in _TAGS.findall(text) for word in _WORD.findall(tags))}
