"""Who drives a run: read without touching the run, from any process, also in a folder that cannot be written."""

from __future__ import annotations

import fcntl
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import InputError
from evomerge.safety.read import read_object
from evomerge.study.run.folder import RunFolder

_LARGEST = 1 << 16
"""Bytes of the file that names the holder."""


@dataclass(frozen=True)
class Driver:
    """The process that drives a run.

    Attributes:
        process, host, since: as it wrote them down; None where that cannot be read.
        certain: whether its lock was seen to be held. A lock of another host may be invisible here.
    """

    process: int | None = None
    host: str | None = None
    since: str | None = None
    certain: bool = True

    def __str__(self) -> str:
        if self.process is None:
            return "by another process"
        seen = "" if self.certain else ", as far as can be seen from here"
        return f"process {self.process} on {self.host} since {self.since}{seen}"


def driver(folder: RunFolder) -> Driver | None:
    """The process that drives the run now; None where none does.

    The lock decides, not the file that names its holder, which a killed process leaves behind. It is tried as a shared
    lock for a moment: that fails while the run is driven, needs no right to write, and changes nothing. Only the file
    tells of a holder on another host, as many network file systems keep locks to one machine.
    """
    held = _is_locked(folder.path / "run.lock")
    named = _named(folder.path / "run.lock.json")
    if held:
        return named or Driver()
    if named is None or (held is False and named.host == platform.node()):
        return None
    if held is None and named.host == platform.node():
        return named if named.process is not None and _is_alive(named.process) else None
    return Driver(named.process, named.host, named.since, certain=False)


def _is_locked(file: Path) -> bool | None:
    """Whether a process holds the lock; None where that cannot be told."""
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)  # and with it the shared lock
    return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _named(file: Path) -> Driver | None:
    try:
        data = read_object(file, largest=_LARGEST)
    except InputError:
        return None
    process, host, since = data.get("pid"), data.get("host"), data.get("since")
    if isinstance(process, int) and process > 0 and isinstance(host, str) and isinstance(since, str):
        return Driver(process, host, since)
    return None
