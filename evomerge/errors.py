"""Every error that a user can cause or meet, and where it stands.

EvomergeError
├── InputError        a file, flag or checkpoint is wrong: where, what, how to mend (exit code 2)
│   ├── BusyError     the run is held by another process (exit code 2)
│   ├── StoppedError  a search, merge or measurement cannot go on, and no candidate is to blame (exit code 2)
│   └── RemovedError  a file asks for what earlier versions could do (exit code 2)
├── TrialError        one candidate could not be materialized or scored; the study goes on
└── LostModelError    the resident model cannot be put right; the study ends
"""

from __future__ import annotations

import difflib
import errno
import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evomerge.escape import masked, shortened

_LONGEST_PART = 1_000
"""Characters of the place, the problem and the mend in a message: a value in it may be a text of a million."""


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
    is escaped, and passwords of URLs are masked."""

    def __init__(self, problem: str, mend: str = "", where: Where | None = None) -> None:
        self.problem, self.mend, self.where = problem, mend, where
        place = shortened(where, _LONGEST_PART) if where else ""
        said = "; ".join(_part(part) for part in (problem, mend) if part)
        super().__init__(f"{place}: {said}" if place else said)


def _part(text: str) -> str:
    return shortened(masked(" ".join(text[: 10 * _LONGEST_PART].split())), _LONGEST_PART)


class UnreachableError(InputError):
    """A model is not here, and the hub that may have it cannot be asked."""


class RemovedError(InputError):
    """A file asks for something that earlier versions could do."""


class BusyError(InputError):
    """The run is driven by another process."""


class StoppedError(InputError):
    """A search, merge or measurement cannot go on, and no candidate is to blame: a source file changed, or no worker is
    left. What was finished before is kept."""


class TrialError(EvomergeError):
    """One candidate failed; its reason is recorded and it ranks last."""


class LostModelError(EvomergeError):
    """Code of the user left the resident model so that nothing can be scored on it any more."""


def nearest(name: str, legal: Iterable[str]) -> str | None:
    """The legal name that looks most like `name`, or None where none is close. Capitals do not count, nor whether words
    are joined by a dash, an underscore or a space."""
    plain = {_plain(other): other for other in legal}
    found = difflib.get_close_matches(_plain(name), list(plain), n=1, cutoff=0.55)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return name[:200].casefold().replace("_", "-").replace(" ", "-")


def suggestion(name: str, legal: Iterable[str], limit: int = 12) -> str:
    """How to mend a wrong name: the nearest legal one, or the list of them."""
    names = sorted(legal)
    close = nearest(name, names)
    if close:
        return f"did you mean {close!r}?"
    shown = ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
    return f"use one of: {shown}" if names else "none is defined"


_MENDS = {
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "delete some of your files: your part of its disk is full",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "check its permissions and those of its folders",
    errno.EPERM: "check its permissions and those of its folders",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "a link leads to itself: replace it",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file: check the path",
    errno.EISDIR: "name a file in it",
    errno.EIO: "check its disk",
    errno.ESTALE: "check its disk or network drive",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENOMEM: "free some memory",
}
"""What to do about an error of the system, by its number."""


def system_error(error: OSError, where: Where | None = None) -> InputError:
    """An error of the system as one line: the file that it is about, what is wrong, and how to mend it."""
    # Without a name, "no such file" is said of the current folder: somebody has removed it.
    unnamed = "the current folder" if error.errno == errno.ENOENT else "stdout or an open file"
    file = error.filename2 or error.filename or unnamed
    reason = error.strerror or str(error) or type(error).__name__
    reason = reason[0].lower() + reason[1:] if reason[1:2].islower() else reason
    return InputError(
        f"{shortened(file)}: {reason}", _MENDS.get(error.errno or 0, "check the path and its disk"), where
    )


DEBUG = "EVOMERGE_DEBUG"
"""The environment variable with which the command line prints the traceback of an error that nobody expected."""


def describe_unexpected(error: Exception) -> str:
    """Describes, in one line, an error that is not raised on purpose: one of the system, or a fault of evomerge."""
    if isinstance(error, OSError):
        return str(system_error(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return "there is not enough memory; lower --memory, --workers or the fitness file's `batch_size`"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    what = shortened(masked(f"{type(error).__name__}{place}: {error}"), 300)
    details = "; ".join(getattr(error, "__notes__", [])) or f"{DEBUG}=1 shows more"
    if isinstance(error, RecursionError):
        return f"something that was given is nested too deep ({what}); write it flatter ({details})"
    if isinstance(error, UnicodeError):
        return f"a text cannot be read or written ({what}); write it in UTF-8 ({details})"
    return f"this is a fault of evomerge ({what}); please report it ({details})"


FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's numbers for: the disk, or the user's part of it, is full."""


def is_disk_full(error: BaseException) -> bool:
    """Whether a disk, or the user's part of it, is full."""
    return isinstance(error, OSError) and error.errno in FULL
