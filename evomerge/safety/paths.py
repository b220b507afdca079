"""Looks at paths that come from outside: a folder of a user that is not there, a link to itself, a name that is too
long and a folder that may not be entered are errors of one line, never exceptions of Python."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from itertools import islice
from pathlib import Path

from evomerge.errors import InputError, Where, nearest, system_error
from evomerge.escape import shortened

_LISTED = 2000
"""Folders whose names are compared with a misspelt one. Comparing a million would take minutes."""


def expanded(text: str | Path, where: Where | None = None) -> Path:
    """The path that a text names, with ``~`` and ``~user`` as home folders. InputError if it names none."""
    if not str(text):
        raise InputError("an empty text is no path", "name a file or a folder", where)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        problem = f"{shortened(text)}: there is no user of that name here"
        raise InputError(problem, "write the folder out", where) from None


def absolute(text: str | Path, start: Path = Path(), where: Where | None = None) -> Path:
    """The absolute path that a text names, links followed; a relative one starts at `start`. InputError if there can be
    no such path."""
    path = start / expanded(text, where)
    status(path, where)  # a link to itself, before Python's resolve() meets it
    return path.resolve()


def seen_from_here(path: Path) -> str:
    """An absolute path as it is written in the current folder: relative where it is inside of it, and never a bare
    name."""
    with suppress(OSError, ValueError):
        seen = path.relative_to(Path.cwd())
        return str(seen) if len(seen.parts) > 1 else f"./{seen}"
    return str(path)


def status(path: Path, where: Where | None = None) -> os.stat_result | None:
    """What the system says about a path, or None if nothing is there. InputError if it cannot say."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise system_error(error, where) from None
    except ValueError:  # a zero character, or half of a character
        raise InputError(f"{str(path)[:200]!r} holds characters that no path has", "check the path", where) from None


def is_folder(path: Path, where: Where | None = None) -> bool:
    """Whether a folder is there. InputError if that cannot be seen."""
    found = status(path, where)
    return found is not None and stat.S_ISDIR(found.st_mode)


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones; of very many, some. Empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _LISTED) if not entry.name.startswith(".")]
    except OSError:
        return []
    return sorted(name for name in names if os.path.isdir(folder / name))


def nearest_folder(path: Path) -> Path | None:
    """The folder whose path is most like that of a missing one: each part as it is written where that is a folder, else
    the nearest name there. None if some part has none."""
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not os.path.isdir(found / part):
            close = nearest(part, folders_in(found))
            if close is None:
                return None
            part = close
        found = found / part
    return found
