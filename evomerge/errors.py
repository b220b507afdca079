"""Every error that a user can cause or meet, and where it stands.

EvomergeError
├── InputError        a file, flag or checkpoint is wrong: where, what, how to mend (exit code 2)
│   ├── BusyError     the run is held by another process (exit code 2)
│   ├── StoppedError  a search, merge or measurement cannot go on, and no candidate is to blame (exit code 2)
│   └── RemovedError  a file asks for what earlier versions could do (exit code 2)
└── TrialError        one candidate could not be materialized or scored; the study goes on
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evomerge.escape import printable


@dataclass(frozen=True)
class Where:
    """A place in an input: a file, a line in it (from 1), a dotted key; any part may be unknown. `folder` is where
    relative paths there start; by default the file's own."""

    file: Path | str | None = None
    line: int | None = None
    key: str | None = None
    folder: Path | None = None

    def __str__(self) -> str:
        parts = [str(self.file)] if self.file is not None else []
        if self.line is not None:
            parts.append(str(self.line))
        place = ":".join(parts)
        if self.key:
            return f"{place}: {self.key}" if place else self.key
        return place


class EvomergeError(Exception):
    """Base of all errors that evomerge raises on purpose."""


class InputError(EvomergeError):
    """Something that the user gave is wrong. Prints as one line: where: what; how to mend. What does not print in it
    is escaped."""

    def __init__(self, problem: str, mend: str = "", where: Where | None = None) -> None:
        self.problem, self.mend, self.where = problem, mend, where
        place = str(where) if where else ""
        text = f"{place}: {problem}" if place else problem
        super().__init__(printable(" ".join(f"{text}; {mend}".split() if mend else text.split())))


class RemovedError(InputError):
    """A file asks for something that earlier versions could do."""


class BusyError(InputError):
    """The run is driven by another process."""


class StoppedError(InputError):
    """A search, merge or measurement cannot go on, and no candidate is to blame: a source file changed, or no worker is
    left. What was finished before is kept."""


class TrialError(EvomergeError):
    """One candidate failed; its reason is recorded and it ranks last."""


def nearest(name: str, legal: Iterable[str]) -> str | None:
    """The legal name that looks most like `name`, or None where none is close."""
    found = difflib.get_close_matches(name, list(legal), n=1, cutoff=0.55)
    return found[0] if found else None


def suggestion(name: str, legal: Iterable[str], limit: int = 12) -> str:
    """How to mend a wrong name: the nearest legal one, or the list of them."""
    names = sorted(legal)
    close = nearest(name, names)
    if close:
        return f"did you mean {close!r}?"
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"use one of: {shown}" if names else "none is defined"


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk, or the user's part of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
