"""Writes a file so that it is there whole or not at all, and still there after a power cut. The steps:

1. Write everything to a hidden file beside the target.
2. fsync that file.
3. Rename it to the target, in one step.
4. fsync the folder, which holds the name.

Everything that a resume reads, and every file that a command writes for the user, is written here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from evomerge.interrupts import deferred

_SWAP = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
_AT_FDCWD = -100  # of Linux: relative names start at the current folder
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV)


def write_whole(file: Path, content: str | bytes | Callable[[IO[bytes]], None]) -> None:
    """Replaces a file: a reader sees the old content or the new, never a part.

    Args:
        file: the target. A symbolic link stays one: the file that it leads to is replaced. A device or a pipe, as
            /dev/stdout, cannot be replaced: it is written to.
        content: text (written as UTF-8), bytes, or a function that writes to the binary stream that it is handed.

    Raises:
        OSError: it cannot be written; its `filename` is the target. The old content is still there.
    """
    with named(file):
        handle = _own_handle(file)
        if handle is not None or (file.exists() and not file.is_file()):
            # A pipe may wait for its reader: an interruption is obeyed at once.
            with open(file if handle is None else handle, "wb") as stream:
                _fill(stream, content)
        else:
            with deferred():
                _replace(_target(file), content)


def _own_handle(file: Path) -> int | None:
    """A copy of the handle that /dev/stdout, /dev/stderr, /dev/fd/N or /proc/self/fd/N names; None for other files.

    Opened by its name, a file that the shell's ``>`` has opened would be written from its beginning, over what was
    printed.
    """
    match = re.fullmatch(r"/dev/(stdout|stderr|fd/\d{1,9})|/proc/self/(fd/\d{1,9})", str(file))
    if match is None:
        return None
    name = match[1] or match[2]
    number = {"stdout": 1, "stderr": 2}.get(name) or int(name.removeprefix("fd/"))
    stream = {1: sys.stdout, 2: sys.stderr}.get(number)
    if stream is not None:
        with suppress(OSError, ValueError, AttributeError):  # an object without a handle may stand in its place
            stream.flush()
            number = stream.fileno()
    return os.dup(number)


def _target(file: Path) -> Path:
    """The file that a symbolic link leads to, in the end."""
    try:
        return file.resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None


def _replace(file: Path, content: str | bytes | Callable[[IO[bytes]], None]) -> None:
    name = file.name.encode(errors="ignore")[:200].decode(errors="ignore")  # of the 255 bytes that a name may have
    temporary = file.with_name(f".{name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        # "x": never through a link that somebody else has laid there.
        with temporary.open("xb") as stream:
            if file.exists():
                os.chmod(temporary, file.stat().st_mode & 0o7777)
            _fill(stream, content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def _fill(stream: IO[bytes], content: str | bytes | Callable[[IO[bytes]], None]) -> None:
    if callable(content):
        content(stream)
    else:
        stream.write(content.encode() if isinstance(content, str) else content)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges the names of two folders in one step. False where the system or the file system cannot; nothing has
    changed then. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, ctypes.c_uint(_SWAP))
    elif hasattr(libc, "renameat2"):
        here = ctypes.c_int(_AT_FDCWD)
        failed = libc.renameat2(here, names[0], here, names[1], ctypes.c_uint(_SWAP))
    else:
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where the file system can: some network file systems refuse."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def named(file: Path) -> Iterator[None]:
    """An OSError inside names `file`, whatever file it named before: a temporary one means nothing to the user."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from error
