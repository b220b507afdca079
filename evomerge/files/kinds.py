"""Tells the kinds of files and folders apart by what they hold. One that is given in place of another is named as what
it is, with the command that takes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import InputError, Where
from evomerge.files.nodes import Node
from evomerge.files.scalars import Schema
from evomerge.files.trees import load, load_documents

SPACE, FITNESS, RECIPE = "a search space", "a fitness file", "a mergekit recipe"


@dataclass(frozen=True)
class FileKind:
    """A kind of YAML file.

    holds: whether a file with these keys is of the kind.
    use: what takes such a file.
    """

    holds: Callable[[Mapping[str, Node]], bool]
    use: str


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder: its name, whether it is a model, and what takes such a folder."""

    name: str
    is_model: bool
    use: str


def _is_task(keys: Mapping[str, Node]) -> bool:
    return not keys.keys().isdisjoint({"task", "group"}) and not keys.keys().isdisjoint(
        {"dataset_path", "output_type", "doc_to_text", "group", "include"}
    )


_FILES = {
    SPACE: FileKind(
        lambda keys: not keys.keys().isdisjoint({"genes", "sources", "space"}), "`evomerge search {file}` searches it"
    ),
    RECIPE: FileKind(
        lambda keys: "merge_method" in keys,
        "`evomerge merge {file} OUT_DIR` writes its checkpoint, `evomerge evaluate {file} --fitness FILE` scores it",
    ),
    FITNESS: FileKind(
        lambda keys: "slices" in keys and isinstance(keys["slices"].value, dict),
        "name it in a search space (`fitness: {file}`), or give it as --fitness",
    ),
    "an lm-eval task": FileKind(
        _is_task, "name its folder under `include` of a fitness file, and the task in a slice of it"
    ),
}
_FOLDERS = {
    "environment.json": FolderKind(
        "a run",
        False,
        "`evomerge resume {file}` goes on with it, `evomerge export {file} -o RECIPE.yaml` writes its recipe",
    ),
    "config.json": FolderKind(
        "a model", True, "`evomerge evaluate {file} --fitness FILE` scores it; a space or a recipe can name it"
    ),
    "adapter_config.json": FolderKind(
        "a LoRA adapter", True, "`evomerge evaluate {file} --fitness FILE` scores it; a space or a recipe can name it"
    ),
}
"""A file in a folder -> what the folder is."""


def load_space(file: Path) -> Node:
    """Reads a search-space file. InputError as for `trees.load`, or if it is a file or folder of another kind."""
    return _load(file, SPACE)


def load_fitness(file: Path, named: Where | None = None) -> Node:
    """Reads a fitness file, which another file names at `named`. InputError as for `trees.load`, or if it is a file or
    folder of another kind."""
    return _load(file, FITNESS, named)


def load_recipe(file: Path) -> list[Node]:
    """Reads the documents of a recipe. InputError as for `trees.load_documents`, or if it is a file or folder of
    another kind."""
    _refuse_folder(file, RECIPE)
    documents = load_documents(file, Schema.RECIPE)
    for document in documents:
        _refuse_other(document, file, RECIPE)
    return documents


def folder_kind(folder: Path) -> FolderKind | None:
    """What a folder is; None where it is neither a run nor a model."""
    return next((kind for name, kind in _FOLDERS.items() if os.path.isfile(folder / name)), None)


def _load(file: Path, wanted: str, named: Where | None = None) -> Node:
    _refuse_folder(file, wanted)
    root = load(file, named=named)
    _refuse_other(root, file, wanted)
    return root


def _refuse_folder(file: Path, wanted: str) -> None:
    if (kind := folder_kind(file)) is not None:
        raise InputError(f"is {kind.name}, not {wanted}", kind.use.format(file=file), Where(file))


def _refuse_other(root: Node, file: Path, wanted: str) -> None:
    """InputError if a file has keys of another kind, and none of the wanted one."""
    keys = root.value
    if not isinstance(keys, dict) or _FILES[wanted].holds(keys):
        return
    other = next((name for name, kind in _FILES.items() if kind.holds(keys)), None)
    if other is not None:
        raise InputError(f"is {other}, not {wanted}", _FILES[other].use.format(file=file), Where(file))
