"""A search that dies, and a disk that fails: counts what writes into a folder, and lets one of these steps fail, or
all from there on.

Python's own calls are wrapped (``open`` and its streams, ``os.open``, ``os.write``, ``os.fsync``, ``os.rename`` and so
on), which the libraries below use, too. A stream keeps its buffer: an error may first come when it is closed.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from evomerge.study.trials import Trials

GROWING = {"open", "write", "fsync", "mkdir", "symlink"}
"""What needs room on the disk."""
_CALLS = (
    "fsync",
    "write",
    "mkdir",
    "symlink",
    "rename",
    "replace",
    "unlink",
    "remove",
    "rmdir",
    "truncate",
    "ftruncate",
)


@dataclass
class Disk:
    """The steps so far, and which are to fail.

    Attributes:
        folder: what stands below it counts.
        steps: the kind and the path of each.
        fail_at: the number of the first step that fails; None: none does.
        error: with this error of the system.
        only: steps fail whose path has this part.
        forever: whether further steps fail, too. On a full disk (ENOSPC) these are the ones that need room.
        failed: the steps that did.
    """

    folder: Path
    fail_at: int | None = None
    error: int = errno.ENOSPC
    forever: bool = True
    only: str = ""
    steps: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def step(self, kind: str, path: Any) -> None:
        """Counts one step, or raises its OSError."""
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else _path_of(path)
        if not Path(os.path.abspath(path)).is_relative_to(self.folder):
            return
        number = len(self.steps)
        self.steps.append((kind, path))
        if self.fail_at is None or number < self.fail_at or (self.failed and not self.forever):
            return
        if self.only not in path or (self.error == errno.ENOSPC and kind not in GROWING):
            return
        self.failed.append((kind, path))
        # The system's calls on handles know no name.
        raise OSError(self.error, os.strerror(self.error), *([] if kind in ("write", "fsync") else [path]))


def _path_of(handle: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        return ""


@contextmanager
def failing(folder: Path, fail_at: int | None = None, **how: Any) -> Iterator[Disk]:
    """Wraps the calls that write below `folder` (`Disk`)."""
    disk = Disk(folder, fail_at, **how)
    with pytest.MonkeyPatch.context() as patch:
        real_open, real_os_open = builtins.open, os.open

        class Raw(io.FileIO):
            def write(self, data: Any, /) -> int:
                disk.step("write", self.fileno())
                return super().write(data)

        def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
            """Streams for writing are built as `io.open` builds them, over `Raw`."""
            path = file if isinstance(file, str | bytes | os.PathLike) else _path_of(file)
            inside = Path(os.path.abspath(os.fsdecode(path))).is_relative_to(folder)
            if not inside or not set(mode) & set("wax+"):
                return real_open(file, mode, buffering, *args, **options)
            if not isinstance(file, int):
                disk.step("open", file)
            names = dict(zip(("encoding", "errors", "newline", "closefd", "opener"), args, strict=False)) | options
            given = {k: names.pop(k) for k in ("closefd", "opener") if k in names}
            raw = Raw(file, "".join(c for c in mode if c in "rwax+"), **given)
            if buffering == 0:
                return raw
            stream = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return stream
            text = io.TextIOWrapper(stream, **names, line_buffering=buffering == 1)
            text.mode = mode  # type: ignore[misc]
            return text

        def os_opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and "dir_fd" not in options:
                disk.step("open", path)
            return real_os_open(path, flags, *args, **options)

        def wrapped(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def step(first: Any, *args: Any, **options: Any) -> Any:
                if options.get("dir_fd") is None:
                    # Of two names the second is the one that is written.
                    disk.step(kind, args[0] if kind in ("rename", "replace", "symlink") else first)
                return call(first, *args, **options)

            return step

        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        patch.setattr(os, "open", os_opened)
        for name in _CALLS:
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        yield disk


def chosen(disk: Disk, most: int, request: pytest.FixtureRequest, shift: int = 0) -> list[int]:
    """The numbers of the steps to let fail: with --long every one, else about `most`, spread over the kinds of steps;
    another `shift` gives others."""
    if request.config.getoption("--long"):
        return list(range(len(disk.steps)))
    kinds: dict[tuple[str, str], int] = {}
    for number, (kind, path) in enumerate(disk.steps):
        kinds.setdefault((kind, re.sub(r"\d+|lock\S+", "", Path(path).name)), number)
    return sorted(kinds.values())[shift % max(1, len(kinds) // most) :: max(1, len(kinds) // most)]


@contextmanager
def dying(after: int) -> Iterator[None]:
    """The process dies as soon as so many trials are stored."""
    end, stored = Trials.end, [0]

    def then_die(self: Trials, *about: Any) -> Any:
        done = end(self, *about)
        stored[0] += 1
        if stored[0] == after:
            raise KeyboardInterrupt
        return done

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trials, "end", then_die)
        yield
