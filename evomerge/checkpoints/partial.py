"""A hidden folder beside its target, which takes the target's place in one step.

While ``models/out`` is written, there stand beside it

- ``.out.partial-NAME``, the new folder;
- ``.out.partial-NAME.lock``, a file that the writing process holds;
- ``.out.partial-NAME.replaced``, the old folder, for a moment and only where two folders cannot be exchanged at once.

The lock file is made first and deleted last. If it is not held, or not there, the writer is dead: the next writer of
the target puts the old folder back if the target is missing, and deletes the rest.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from evomerge.interrupts import deferred
from evomerge.safety.durable import exchange, sync_folder

_LOCK, _REPLACED = ".lock", ".replaced"
_LONGEST = 200  # bytes of a name; file systems take 255, and endings are added


class PartialFolder:
    """A new hidden folder beside `target`, held by this process until `put` or `drop`."""

    def __init__(self, target: Path) -> None:
        """Deletes what dead writers of the target left, then makes the folder. Raises OSError."""
        self.target = target
        self._made = [parent for parent in target.parents if not parent.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep(target)
            self._held = self._begin()
        except BaseException:
            self._remove_parents()
            raise
        try:
            self.path.mkdir()
        except BaseException:
            self.drop()
            raise

    def _begin(self) -> int:
        """Finds a name that is free, and holds its lock file."""
        while True:
            self.path = self.target.with_name(_prefix(self.target) + secrets.token_hex(4))
            held = _hold(_beside(self.path, _LOCK), os.O_CREAT | os.O_EXCL)
            # A sweeper that saw the file before it was held has deleted it, or is about to.
            if held is not None and _beside(self.path, _LOCK).exists():
                return held
            if held is not None:
                os.close(held)

    @deferred()
    def put(self) -> None:
        """Renames the folder to the target, in place of the folder that is there. Raises OSError; an old folder is
        where it was then."""
        if not (self.target.is_dir() and any(self.target.iterdir())):
            os.rename(self.path, self.target)  # fails where a folder with content has appeared meanwhile
        elif not exchange(self.path, self.target):
            old = _beside(self.path, _REPLACED)
            os.rename(self.target, old)
            try:
                os.rename(self.path, self.target)
            except BaseException:
                with suppress(OSError):
                    os.rename(old, self.target)
                raise
        sync_folder(self.target.parent)

    def drop(self) -> None:
        """Deletes what is left of the folder, or the folder that it has replaced, and lets go of it."""
        with suppress(OSError):
            _clear(self.path, self.target)
        with suppress(OSError):
            _beside(self.path, _LOCK).unlink()
        os.close(self._held)
        self._remove_parents()

    def _remove_parents(self) -> None:
        """Deletes the folders above that were made for this one, where they are empty."""
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()


def sweep(target: Path) -> None:
    """Puts back or deletes what dead writers of the target left. Raises OSError if an old folder cannot be put back."""
    for folder in _partials(target):
        lock = _beside(folder, _LOCK)
        held = _hold(lock) if lock.exists() else None
        if held is None and lock.exists():
            continue  # its writer lives, or the file system cannot tell
        try:
            _clear(folder, target)
            lock.unlink(missing_ok=True)
        finally:
            if held is not None:
                os.close(held)


def _clear(folder: Path, target: Path) -> None:
    old = _beside(folder, _REPLACED)
    if old.is_dir():
        if not os.path.lexists(target):
            with suppress(FileNotFoundError):  # another sweeper was faster
                os.rename(old, target)
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _partials(target: Path) -> Iterator[Path]:
    """The hidden folders of a target, each once, also those of which only the lock file is left."""
    names = [name for name in os.listdir(target.parent) if name.startswith(_prefix(target))]
    for name in dict.fromkeys(name.removesuffix(_LOCK).removesuffix(_REPLACED) for name in names):
        yield target.with_name(name)


def _prefix(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > _LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}.partial-"


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(folder.name + ending)


def _hold(file: Path, flags: int = 0) -> int | None:
    """The handle of a lock file that nobody else holds, which the system lets go when its process dies; else None.

    A file system without locks holds nothing, and nothing is swept there.
    """
    import fcntl

    try:
        handle = os.open(file, os.O_RDWR | os.O_CLOEXEC | flags, 0o666)
    except OSError as error:
        if not flags or error.errno == errno.EEXIST:
            return None
        raise
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        if flags:
            return handle
        os.close(handle)
        return None
    return handle
