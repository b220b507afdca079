"""Tells the kinds of files and folders apart by what they hold. One that is given in place of another is named as what
it is, with the command that takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import InputError, Where
from evomerge.files.nodes import Node, load, load_documents

SPACE, FITNESS, RECIPE = "a search space", "a fitness file", "a mergekit recipe"
_TASK, _RUN, _MODEL, _ADAPTER = "an lm-eval task", "a run", "a model", "a LoRA adapter"


@dataclass(frozen=True)
class _Kind:
    """A kind of YAML file.

    holds: whether a file with these keys is of the kind.
    use: what takes such a file.
    """

    holds: Callable[[dict[str, Node]], bool]
    use: str


_KINDS = {
    SPACE: _Kind(lambda keys: not {"genes", "sources"}.isdisjoint(keys), "`evomerge search {file}` searches it"),
    RECIPE: _Kind(
        lambda keys: "merge_method" in keys,
        "`evomerge merge {file} OUT_DIR` writes its checkpoint, `evomerge evaluate {file} --fitness FILE` scores it",
    ),
    FITNESS: _Kind(
        lambda keys: "slices" in keys and isinstance(keys["slices"].value, dict),
        "name it in a search space (`fitness: {file}`), or give it as --fitness",
    ),
    _TASK: _Kind(
        lambda keys: (
            not {"task", "group"}.isdisjoint(keys)
            and not {"dataset_path", "output_type", "doc_to_text", "group", "include"}.isdisjoint(keys)
        ),
        "name its folder under `include` of a fitness file, and the task in a slice",
    ),
}
_FOLDERS = {
    # a file in the folder -> the kind, and what takes it
    "environment.json": (_RUN, "`evomerge resume {file}` goes on with it, `evomerge export {file} -o RECIPE.yaml` writes its recipe"),
    "config.json": (_MODEL, "`evomerge evaluate {file} --fitness FILE` scores it; a space or a recipe may name it"),
    "adapter_config.json": (_ADAPTER, "`evomerge evaluate BASE+{file} --fitness FILE` scores it; a space or a recipe may name it"),
}  # fmt: skip


def load_space(file: Path) -> Node:
    """Reads a search-space file. InputError as for `nodes.load`, or if it is a file or folder of another kind."""
    return _load(file, SPACE)


def load_fitness(file: Path) -> Node:
    """Reads a fitness file. InputError as for `nodes.load`, or if it is a file or folder of another kind."""
    return _load(file, FITNESS)


def load_recipe(file: Path) -> list[Node]:
    """Reads the documents of a recipe. InputError as for `nodes.load_documents`, or if it is a file or folder of
    another kind."""
    _refuse_folder(file, RECIPE)
    documents = load_documents(file)
    for document in documents:
        _refuse_other(document, file, RECIPE)
    return documents


def folder_kind(folder: Path) -> tuple[str, str] | None:
    """What a folder is ("a run"), and what to do with it; None where it is neither a run nor a model."""
    return next((about for name, about in _FOLDERS.items() if (folder / name).is_file()), None)


def _load(file: Path, wanted: str) -> Node:
    _refuse_folder(file, wanted)
    root = load(file)
    _refuse_other(root, file, wanted)
    return root


def _refuse_folder(file: Path, wanted: str) -> None:
    if file.is_dir() and (about := folder_kind(file)):
        raise InputError(f"is {about[0]}, not {wanted}", about[1].format(file=file), Where(file))


def _refuse_other(root: Node, file: Path, wanted: str) -> None:
    """InputError if a file has keys of another kind, and none of the wanted one."""
    keys = root.value
    if not isinstance(keys, dict) or _KINDS[wanted].holds(keys):
        return
    other = next((name for name, kind in _KINDS.items() if kind.holds(keys)), None)
    if other is not None:
        raise InputError(f"is {other}, not {wanted}", _KINDS[other].use.format(file=file), Where(file))
