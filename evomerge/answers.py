"""How commands call their functions and answer: exit codes, results on stdout, progress and errors on stderr."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from evomerge.escape import LogFormatter, printable

DONE, NO, WRONG, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
EXIT_CODES = {
    DONE: "done",
    NO: "ran, and the answer is no: a floor is missed, nothing is feasible",
    WRONG: "the input is wrong, or something failed",
    INTERRUPTED: "interrupted; everything that was finished is kept",
    PIPE_CLOSED: "the program that read the output has left",
}
"""What each exit code means."""
T = TypeVar("T")


def call(function: Callable[..., T], options: argparse.Namespace, **others: Any) -> T:
    """Calls a public function with each option that is named as one of its parameters, and with `others`."""
    parameters = inspect.signature(function).parameters
    return function(**{**{name: value for name, value in vars(options).items() if name in parameters}, **others})


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


def show(*things: Any) -> int:
    """Prints tables and lines of text."""
    from evomerge.report import shown

    shown.show(*things)
    return DONE


def print_data(options: argparse.Namespace, data: Any, lines: Callable[[], Sequence[str]] | None = None) -> int:
    """Prints JSON, or the lines in its place."""
    if lines is not None and not options.json:
        return show(*lines())
    from evomerge.report.data import as_json

    print(as_json(data))
    return DONE


def complain(text: str, code: int, kind: str = "error") -> int:
    with suppress(OSError):  # the terminal may be closed
        print(printable(f"{kind}: {text}"), file=sys.stderr)
    return code
