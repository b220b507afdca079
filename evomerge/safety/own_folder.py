"""Folders for a while: each belongs to a process, and none outlives it for long.

A folder is removed by its owner, at the end at the latest. A process that is killed removes nothing; so each folder is
locked as long as its owner lives, and whoever makes another one first removes those that nobody locks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

_LOCK = "lock"


class OwnFolder:
    """A new folder, `path`, which is gone once it is removed, or nothing holds this object any more, or Python ends."""

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        """`prefix`: of its name; folders of the same prefix whose owners are gone are removed. `parent`: where it is
        made; None: the folder for temporary files. OSError where it cannot be made."""
        parent = parent or Path(tempfile.gettempdir())
        _remove_orphans(parent, prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._end = weakref.finalize(self, _remove, self.path, lock, os.getpid())
        _ENDS.add(self._end)

    def remove(self) -> None:
        self._end()
        _ENDS.discard(self._end)


_ENDS: set[weakref.finalize[..., OwnFolder]] = set()


def remove_own_folders() -> None:
    """Removes all folders of this process: called where it is about to kill itself."""
    for end in list(_ENDS):
        end()


def _remove(place: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked from it
        shutil.rmtree(place, ignore_errors=True)
    os.close(lock)


def _remove_orphans(parent: Path, prefix: str) -> None:
    for place in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(lock)
