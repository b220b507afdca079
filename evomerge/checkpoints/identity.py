"""Notices that a checkpoint's files change while they are in use: large files stay on the disk and are read as they are
needed, so that a file that is replaced or overwritten would be half of one model and half of another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from evomerge.errors import InputError, StoppedError


class Identity(NamedTuple):
    """What tells one state of a file from another without reading it. Of a link, as in the hub's cache, it is the
    target's."""

    device: int
    inode: int
    size: int
    mtime_ns: int


class Used(Protocol):
    """A checkpoint in use. `seen`: the files of its folders as they were before the first of them was read."""

    @property
    def seen(self) -> Mapping[Path, Identity]: ...
    def files(self) -> list[Path]: ...


def identity(file: Path) -> Identity | None:
    """The file's identity now; None where there is no such file, or it cannot be looked at."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return Identity(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def identities(folder: Path) -> dict[Path, Identity]:
    """The identity of everything in a folder, by path. InputError where the folder cannot be read."""
    try:
        seen = {file: identity(file) for file in folder.iterdir()}
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror or error})", "check its permissions") from None
    return {file: found for file, found in seen.items() if found is not None}


_arrived: dict[Path, Identity] = {}


def note_arrival(file: Path) -> None:
    """Remember a file of a checkpoint that came to its place after the checkpoint was opened, as it is now."""
    found = identity(file)
    if found is not None:
        _arrived[file] = found


def changed_file(checkpoints: Iterable[Used]) -> Path | None:
    """The first file that is not what it was when its checkpoint was opened: replaced, written to, cut, new or gone."""
    for checkpoint in checkpoints:
        for file in checkpoint.files():
            if identity(file) != (checkpoint.seen.get(file) or _arrived.get(file)):
                return file
    return None


def check_unchanged(checkpoints: Iterable[Used], doing: str, mend: str) -> None:
    """StoppedError where a file has changed since its checkpoint was opened. `doing`: what was done meanwhile."""
    file = changed_file(checkpoints)
    if file is not None:
        raise StoppedError(f"{file} has changed {doing}", mend)


class FileDigest(NamedTuple):
    """The content of a file."""

    sha256: str
    bytes: int


_digests: dict[tuple[Path, Identity | None], FileDigest] = {}


def file_digest(file: Path) -> FileDigest:
    """The digest of a file, remembered until the file changes."""
    key = (file, identity(file))
    if key not in _digests:
        with file.open("rb") as stream:
            _digests[key] = FileDigest(hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell())
    return _digests[key]


def fingerprint(digests: Iterable[tuple[str, FileDigest]]) -> str:
    """sha256 (hex) over names and contents of files, in their order."""
    whole = hashlib.sha256()
    for name, digest in digests:
        whole.update(f"{name}\0{digest.sha256}\n".encode())
    return whole.hexdigest()
