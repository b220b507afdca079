"""Reads small files that come from outside: regular files only, of a bounded size, as text or as JSON.

A path in a file can name a device, a pipe or a file of gigabytes. Reading those would hang or fill the memory.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where

LARGEST = 256 << 20
"""Bytes of a text that is read whole. The largest tokenizer.json of a published model has some 40 MB."""

_MEND = "copy or download it again"


def read_bytes(file: Path, where: Where | None = None, *, largest: int = LARGEST) -> bytes:
    """The content of a regular file. InputError if it is missing, anything else, too large, or cannot be read."""
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer.
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                raise InputError(f"{file} is a folder, not a file", "name a file in it", where)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{file} is a device or a pipe, not a file", "name a regular file", where)
            if status.st_size > largest:
                size = f"{status.st_size / 1e6:,.0f} MB"
                raise InputError(f"{file} has {size}, more than {largest / 1e6:,.0f} MB", "name a smaller file", where)
            return stream.read()
    except FileNotFoundError:
        raise InputError(f"there is no file {file}", "check the path", where) from None
    except IsADirectoryError:
        raise InputError(f"{file} is a folder, not a file", "name a file in it", where) from None
    except (OSError, ValueError) as error:
        problem = f"{file} cannot be read ({getattr(error, 'strerror', None) or error})"
        raise InputError(problem, "check the path and its permissions", where) from None


def read_text(file: Path, where: Where | None = None, *, largest: int = LARGEST) -> str:
    """The UTF-8 text of a regular file. InputError as for `read_bytes`, or if it is no UTF-8."""
    try:
        return read_bytes(file, where, largest=largest).decode("utf-8")
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
        return json.loads(text)
    except RecursionError:
        raise InputError(f"{file} is not valid JSON (nested too deep)", _MEND, where) from None
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON ({error})", _MEND, where) from None
