"""Resolves model references: a folder here or a hub id with its commit, each with or without an adapter."""

from __future__ import annotations

from pathlib import Path

from evomerge.checkpoints import hub
from evomerge.errors import InputError, Where, nearest
from evomerge.escape import shortened


def split_adapter(ref: str, where: Where | None = None) -> tuple[str, str | None]:
    """``model+adapter`` -> (model, adapter), each with its revision; (ref, None) without an adapter.

    A plus sign inside a folder's name is no separator.

    Raises:
        InputError: more than one adapter, or half of a pair.
    """
    if "+" not in ref or _folder(ref, where):
        return ref, None
    pairs = [(ref[:i], ref[i + 1 :]) for i, sign in enumerate(ref) if sign == "+"]
    local = [pair for pair in pairs if all(_folder(half, where) for half in pair)]
    if len(pairs) > 1 and not local:
        raise InputError(f"{ref} names more than one adapter", "give one: model+adapter", where)
    model, adapter = (local or pairs)[0]
    if not model or not adapter:
        raise InputError(f"{ref} is not model+adapter", "give a model, a plus sign and an adapter", where)
    return model, adapter


def resolve(ref: str, where: Where | None = None) -> tuple[Path, str]:
    """The folder of a reference, downloaded if need be, and its reference from anywhere: the absolute folder, or
    ``hub id@commit``.

    Raises:
        InputError: there is no such folder or repository, or it cannot be reached.
    """
    folder = locate(ref, where)
    if folder is not None:
        return folder, str(folder)
    name, revision = hub.split_revision(ref)
    folder, commit = hub.fetch(name, revision, where=where, meant=_meant(ref, where))
    return folder, f"{name}@{commit}"


def locate(ref: str, where: Where | None = None) -> Path | None:
    """The absolute folder of a reference, or None for a hub id. Relative folders start at the current folder or, if
    there is none, at the folder of the file that `where` names.

    Raises:
        InputError: it is neither a folder nor a possible hub id.
    """
    folder = _folder(ref, where)
    if folder is not None:
        if not folder.is_dir():
            raise InputError(f"{ref} is a file, not a model folder", "give the folder that holds config.json", where)
        return folder.resolve()
    name, meant = hub.split_revision(ref)[0], _meant(ref, where)
    if not hub.looks_like_hub_id(name) or ("/" not in name and meant):
        mend = f"did you mean {meant}?" if meant else "give a model folder or a hub id"
        raise InputError(f"there is no folder {shortened(ref)}", mend, where)
    return None


def _folder(ref: str, where: Where | None) -> Path | None:
    """The path of a reference, if there is a file or folder. InputError if that cannot be told."""
    written = _written(ref)
    try:
        return next((p for p in (written, _home(where) / written) if ref and p.exists()), None)
    except OSError as error:
        problem = f"{shortened(ref)} cannot be opened ({error.strerror or error})"
        raise InputError(problem, "check the path and its permissions", where) from None


def _written(ref: str) -> Path:
    """The reference as a path. A tilde is the home folder only where there is such a user."""
    try:
        return Path(ref).expanduser()
    except RuntimeError:
        return Path(ref)


def _home(where: Where | None) -> Path:
    """The folder of the file that `where` names, else the current one."""
    return Path(where.file).resolve().parent if where and where.file else Path()


def _meant(ref: str, where: Where | None) -> str:
    """The folder beside the missing one with the nearest name, or an empty text."""
    written = _written(ref)
    for folder in ((_home(where) / written).parent, written.parent):
        try:
            names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        except OSError:
            continue  # only a suggestion
        close = nearest(written.name, names)
        if close:
            return str(written.with_name(close))
    return ""
