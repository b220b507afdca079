"""Around the work on a run: keeps its log, and says what could not be written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evomerge.errors import EvomergeError, InputError, is_disk_full
from evomerge.escape import LogFormatter
from evomerge.study.run.database import cause_of, is_of_storage
from evomerge.study.run.folder import RunFolder


class _RunLog(logging.FileHandler):
    """A log that costs no search, and no word on the terminal, where it cannot be written."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):  # what a full disk did not take is written again here
            super().close()


@contextmanager
def logged(folder: RunFolder) -> Iterator[None]:
    """Keeps the run's log."""
    logger, handler = logging.getLogger("evomerge"), _RunLog(folder.log, encoding="utf-8", delay=True)
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        if not (isinstance(error, (EvomergeError, OSError)) or is_of_storage(error)):
            logger.exception("a fault of evomerge's own")
            error.add_note(f"{folder.log} shows more")
        raise
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def diagnosed(folder: RunFolder) -> Iterator[None]:
    """Says which file of the run could not be written, and how to go on: what finished is in the journal."""
    try:
        yield
    except OSError as error:
        file = error.filename2 or error.filename
        of_run = isinstance(file, (str, Path)) and folder.path in (Path(file), *Path(file).parents)
        if not of_run and not is_disk_full(error):
            raise
        reason = "the disk is full" if is_disk_full(error) else error.strerror
        mend = "free some space" if is_disk_full(error) else "make it possible"
        raise _ended(folder, f"{file if of_run else folder.path} cannot be written: {reason}", mend) from None
    except Exception as error:
        if not is_of_storage(error):
            raise
        problem = f"the storage of the run {folder.name!r} failed ({cause_of(error)})"
        raise _ended(folder, problem, "mend it") from error


def _ended(folder: RunFolder, problem: str, mend: str) -> InputError:
    if not folder.environment.exists():
        return InputError(problem, f"{mend} and launch again, or choose another --run")
    return InputError(f"{problem}; every finished trial is kept", f"{mend}, then `evomerge resume {folder.handle}`")
