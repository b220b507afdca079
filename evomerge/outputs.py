"""What commands put out: exit codes, results on stdout, errors on stderr; and files of results, which are checked
before the work and written after it."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from evomerge.errors import InputError, Where
from evomerge.escape import LogFormatter, printable

DONE, NO, WRONG, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
T = TypeVar("T")


def call(function: Callable[..., T], options: argparse.Namespace, **others: Any) -> T:
    """Calls a public function with each option that is named as one of its parameters, and with `others`."""
    parameters = inspect.signature(function).parameters
    return function(**{**{name: value for name, value in vars(options).items() if name in parameters}, **others})


def output_file(
    name: str | None, option: str, endings: Sequence[str] = (), read: Sequence[str | None] = ()
) -> Path | None:
    """Returns a file to write. InputError, before an hour of scoring, where it cannot be written, or is one of the
    files that are `read`."""
    if name is None:
        return None
    file = Path(name)
    if endings and file.suffix.lower() not in endings:
        raise InputError(f"{name} is none of {', '.join(endings)}", f"write for example x{endings[0]}", Where(option))
    real = Path(os.path.realpath(file))  # a link stays one: what it leads to is written
    if file.is_dir():
        raise InputError(f"{name} is a folder", "name a file in it", Where(option))
    if file.exists() and not file.is_file():
        return file  # a device or a pipe
    if not real.parent.is_dir():
        raise InputError(
            f"there is no folder {real.parent if file.is_symlink() else file.parent}", "create it", Where(option)
        )
    if not os.access(real.parent, os.W_OK | os.X_OK) or (file.exists() and not os.access(file, os.W_OK)):
        raise InputError(f"you may not write {name}", "name another file", Where(option))
    if any(os.path.realpath(other) == str(real) for other in read if other is not None):
        raise InputError(f"{name} is read, and would be written over", "name another file", Where(option))
    return file


def save(file: Path | None, write: Callable[[Path], None]) -> list[str]:
    """Writes a file of results. What kept it from being written, as a line: the results are printed all the same."""
    if file is not None:
        try:
            write(file)
        except OSError as error:
            return [
                f"{file} is not written ({error.strerror or error}); name another file, or make room, and run it again"
            ]
    return []


def show(*things: Any) -> int:
    """Prints tables and lines of text."""
    from evomerge.report.shown import show as print_all

    print_all(*things)
    return DONE


def print_result(options: argparse.Namespace, data: Any, lines: Callable[[], Sequence[str]] | None = None) -> int:
    """Prints JSON, or the lines in its place."""
    if lines is not None and not options.json:
        return show(*lines())
    from evomerge.report.data import as_json

    print(as_json(data))
    return DONE


def complain(text: str, code: int, kind: str = "error") -> int:
    """Says on stderr what is wrong, and returns the exit code."""
    with suppress(OSError):  # the terminal may be closed
        print(printable(f"{kind}: {text}"), file=sys.stderr)
    return code


def end(code: int, unsaved: Sequence[str]) -> int:
    """Returns the exit code of a command whose results are printed, and says which files they are not in."""
    for line in unsaved:
        code = complain(line, WRONG)
    return code


def view() -> Any:
    from evomerge.report import live

    if logging.lastResort is not None:  # what is logged outside of a run
        logging.lastResort.setFormatter(LogFormatter("%(message)s"))
    return live.view()
