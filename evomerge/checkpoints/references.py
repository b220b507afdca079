"""Resolves model references: a folder here or a hub id with its commit, each with or without an adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from evomerge.checkpoints import hub
from evomerge.checkpoints.quantized.gguf_file import ENDING
from evomerge.errors import InputError, Where, suggestion
from evomerge.escape import shortened
from evomerge.safety.paths import absolute, expanded, folders_in, is_folder, nearest_folder, status

_CONFIGS = ("config.json", "adapter_config.json")
_elsewhere: dict[str, Path] = {}


def relocate(places: Mapping[str, str]) -> None:
    """From now on these references lead to other places of this machine, and keep their names. `places`: reference ->
    folder, or file of weights."""
    _elsewhere.update({reference: Path(place) for reference, place in places.items()})


def split_adapter(ref: str, where: Where | None = None) -> tuple[str, str | None]:
    """``model+adapter`` -> (model, adapter), each with its revision; (ref, None) without an adapter.

    A plus sign inside a folder's name is no separator.

    Raises:
        InputError: more than one adapter, or half of a pair.
    """
    if "+" not in ref or _there(ref, where):
        return ref, None
    pairs = [(ref[:i], ref[i + 1 :]) for i, sign in enumerate(ref) if sign == "+"]
    local = [pair for pair in pairs if all(_there(half, where) for half in pair)]
    if len(pairs) > 1 and not local:
        raise InputError(f"{shortened(ref)} names more than one adapter", "give one: model+adapter", where)
    model, adapter = (local or pairs)[0]
    if not model or not adapter:
        raise InputError(f"{shortened(ref)} is not model+adapter", "give a model, a plus sign and an adapter", where)
    return model, adapter


def check_reference(ref: str, where: Where | None = None) -> None:
    """Checks a reference that a user wrote, and both parts of one with an adapter. Opens and fetches nothing.

    ``org/name`` without a revision is taken for a misspelt path, not for a hub id, where there is a folder `org`, or a
    folder whose path is much like ``org/name``.

    Raises:
        InputError: it is neither a folder nor a possible hub id.
    """
    for part in split_adapter(ref, where):
        folder = locate(part, where) if part is not None else None
        if folder is not None:
            _check_model(ref, folder, where)
        elif part is not None:
            _check_hub_id(part, where)


def _check_model(ref: str, folder: Path, where: Where | None) -> None:
    """InputError for a folder that holds models, and is none."""
    if folder.suffix == ENDING or any((folder / name).is_file() for name in _CONFIGS):
        return
    names = [name for name in folders_in(folder) if (folder / name / _CONFIGS[0]).is_file()]
    if names:
        raise InputError(f"{ref} holds models, and is none", f"use one of: {', '.join(names[:12])}", where)


def _check_hub_id(ref: str, where: Where | None) -> None:
    """InputError if a possible hub id looks like a path of a folder here."""
    name, revision = hub.split_revision(ref)
    if revision is not None or "/" not in name:
        return
    close, mend = _close(ref, where), None
    parent = next((path.parent for path in _places(ref, where) if path.parent.is_dir()), None)
    if close is not None:
        mend = f"did you mean the folder {close}?"
    elif parent is not None:
        mend = suggestion(Path(name).name, folders_in(parent)) if folders_in(parent) else f"{parent} holds no folder"
    if mend is not None:
        raise InputError(f"there is no folder {ref}", f"{mend} (on the hub it is {name}@main)", where)


def resolve(ref: str, where: Where | None = None) -> tuple[Path, str]:
    """The folder of a reference, downloaded if need be, and its reference from anywhere: the absolute folder, or
    ``hub id@commit``.

    Raises:
        InputError: there is no such folder or repository, or it cannot be reached.
    """
    folder = locate(ref, where)
    if folder is not None:
        return folder, ref if ref in _elsewhere else str(folder)
    name, revision = hub.split_revision(ref)
    folder, commit = hub.fetch(name, revision, where=where)
    return folder, f"{name}@{commit}"


def locate(ref: str, where: Where | None = None) -> Path | None:
    """The absolute folder of a reference, or None for a hub id. Relative folders start at the folder that `where` says
    or, if it says none, at the current folder and then at the folder of the file that `where` names.

    Raises:
        InputError: it is neither a folder nor a possible hub id.
    """
    folder = _there(ref, where)
    if folder is not None:
        if not is_folder(folder, where) and folder.suffix != ENDING:
            problem = f"{shortened(ref)} is a file, not a model folder"
            raise InputError(problem, "give the folder that holds config.json", where)
        return absolute(folder, where=where)
    name, close = hub.split_revision(ref)[0], _close(ref, where)
    if not hub.looks_like_hub_id(name) or ("/" not in name and close is not None):
        mend = f"did you mean {close}?" if close is not None else "give a model folder or a hub id"
        raise InputError(f"there is no folder {shortened(ref)}", mend, where)
    return None


def _close(ref: str, where: Where | None) -> Path | None:
    """The folder whose path is most like that of a missing one, as one would write it; None if there is none."""
    found = next((path for path in map(nearest_folder, _places(ref, where)) if path is not None), None)
    start = where.folder if where is not None else None
    return found.relative_to(start) if found and start and found.is_relative_to(start) else found


def _there(ref: str, where: Where | None) -> Path | None:
    """The path of a reference, if there is a file or folder. InputError for one that means two of them, here and
    beside the file."""
    if ref in _elsewhere:
        return _elsewhere[ref]
    there = [path for path in _places(ref, where) if ref and status(path, where) is not None]
    if len(there) > 1 and not os.path.samefile(there[0], there[1]):
        problem = f"{shortened(ref)} is in the current folder, and beside the file ({there[1]})"
        raise InputError(problem, "write the whole path of the one that is meant", where)
    return there[0] if there else None


def _places(ref: str, where: Where | None) -> list[Path]:
    """The paths that a reference can mean."""
    written = expanded(ref, where)
    if where is not None and where.folder is not None:
        return [where.folder / written]
    home = Path(where.file).resolve().parent if where is not None and where.file else Path()
    return list(dict.fromkeys((written, home / written)))
