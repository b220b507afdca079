"""Reads small files that come from outside: regular files only, of a bounded size, as text or as JSON.

A path in a file can name a device, a pipe or a file of gigabytes. Reading those would hang or fill the memory.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from evomerge.errors import InputError, Where

LARGEST = 256 << 20
"""Bytes of a text that is read whole. The largest tokenizer.json of a published model has some 40 MB."""

_MEND = "copy or download it again"


def is_there(file: Path, where: Where | None = None) -> bool:
    """Whether there is a regular file of this name. InputError if the name is another thing's (a folder, a pipe, a
    device, a link to nothing or to itself), or if the file may not be read."""
    try:
        status = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(file):
            raise InputError(f"{file} is a link to nothing", _MEND, where) from None
        return False
    except (OSError, ValueError) as error:
        raise _unreadable(file, error, where) from None
    _check_regular(file, status, where)
    if not os.access(file, os.R_OK):
        raise _unreadable(file, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), where)
    return True


@contextmanager
def opened(file: Path, where: Where | None = None) -> Iterator[tuple[IO[bytes], int]]:
    """A regular file as a binary stream, and its size. InputError if it is missing, anything else, or cannot be read,
    also while it is read."""
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise InputError(f"there is no file {file}", "check the path", where) from None
    except (OSError, ValueError) as error:
        raise _unreadable(file, error, where) from None
    try:
        status = os.fstat(handle)
        _check_regular(file, status, where)
    except BaseException:
        os.close(handle)
        raise
    with os.fdopen(handle, "rb") as stream:
        try:
            yield stream, status.st_size
        except OSError as error:
            raise _unreadable(file, error, where) from None


def read_bytes(file: Path, where: Where | None = None, *, largest: int = LARGEST) -> bytes:
    """The content of a regular file. InputError if it is missing, anything else, too large, or cannot be read."""
    with opened(file, where) as (stream, size):
        if size > largest:
            problem = f"{file} has {size / 1e6:,.0f} MB, more than {largest / 1e6:,.0f} MB"
            raise InputError(problem, "name a smaller file", where)
        return stream.read()


def read_text(file: Path, where: Where | None = None, *, largest: int = LARGEST) -> str:
    """The UTF-8 text of a regular file. InputError as for `read_bytes`, or if it is no UTF-8."""
    return _decoded(read_bytes(file, where, largest=largest), file, where)


def _decoded(content: bytes, file: Path, where: Where | None) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start})", _MEND, where) from None


def read_json(file: Path, where: Where | None = None, *, largest: int = LARGEST) -> Any:
    """The JSON value in a file. InputError as for `read_text`, or if it is no JSON, is nested too deep, or has a number
    of too many digits. NaN and Infinity are numbers here, as configurations of published models hold them."""
    return parse_json(read_text(file, where, largest=largest), file, where)


def read_object(file: Path, where: Where | None = None, *, largest: int = LARGEST) -> dict[str, Any]:
    """The JSON object in a file. InputError as for `read_json`, or if it is no object."""
    data = read_json(file, where, largest=largest)
    if not isinstance(data, dict):
        raise InputError(f"{file} is not a JSON object", _MEND, where)
    return data


def parse_json(text: str | bytes, file: Path, where: Where | None = None) -> Any:
    """The value of a JSON text that was read from `file`. InputError as for `read_json`."""
    try:
        return json.loads(text if isinstance(text, str) else _decoded(text, file, where))
    except RecursionError:
        raise InputError(f"{file} is not valid JSON (nested too deep)", _MEND, where) from None
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error})", _MEND, where) from None


def _check_regular(file: Path, status: os.stat_result, where: Where | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{file} is a folder, not a file", "name a file in it", where)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{file} is a device or a pipe, not a file", "name a regular file", where)


def _unreadable(file: Path, error: Exception, where: Where | None) -> InputError:
    problem = f"{file} cannot be read ({getattr(error, 'strerror', None) or error})"
    return InputError(problem, "check the path and its permissions", where)
