"""Writes a file so that it is there whole or not at all, and still there after a power cut. The steps:

1. Write everything to a hidden file beside the target.
2. fsync that file.
3. Rename it to the target, in one step.
4. fsync the folder, which holds the name.

Everything that a resume reads, and every file that a command writes for the user, is written here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from evomerge.interrupts import deferred


def write_whole(file: Path, content: str | bytes | Callable[[IO[bytes]], None]) -> None:
    """Replaces a file: a reader sees the old content or the new, never a part.

    Args:
        file: the target. A symbolic link stays one: the file that it leads to is replaced. A device or a pipe, as
            /dev/stdout, cannot be replaced: it is written to.
        content: text (written as UTF-8), bytes, or a function that writes to the binary stream that it is handed.

    Raises:
        OSError: it cannot be written; its `filename` is the target. The old content is still there.
    """
    with named(file), deferred():
        _replace(file.resolve(), content)


def _replace(file: Path, content: str | bytes | Callable[[IO[bytes]], None]) -> None:
    if file.exists() and not file.is_file():
        with file.open("wb") as stream:
            _fill(stream, content)
        return
    temporary = file.with_name(f".{file.name[:100]}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
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
