"""Files of results that commands write: they are checked before the work, and written after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from evomerge.errors import InputError, Where


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
