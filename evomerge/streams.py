"""Keeps stdout for the results of a command: one stray line in it breaks the JSON that a script reads."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

_OUT, _ERROR = 1, 2


@contextmanager
def results_only() -> Iterator[None]:
    """Until the end, `sys.stdout` leads where it did, and file descriptor 1 to stderr: what C libraries and other
    processes write there does not reach the results. Where `sys.stdout` is not on descriptor 1, as in a notebook,
    nothing changes."""
    _open_closed()
    before = sys.stdout
    try:
        on_descriptor = before.fileno() == _OUT
    except (OSError, ValueError):  # in memory; closed
        on_descriptor = False
    if not on_descriptor:
        yield
        return
    before.flush()
    kept = os.dup(_OUT)
    os.dup2(_ERROR, _OUT)
    with os.fdopen(kept, "wb", closefd=False) as stream:
        sys.stdout = TextIOWrapper(stream, before.encoding, before.errors, line_buffering=before.isatty())
        results = sys.stdout
        try:
            yield
            results.flush()
        finally:
            sys.stdout = before
            with suppress(OSError):
                results.close()
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).fflush(None)  # what C libraries have not written yet
            os.dup2(kept, _OUT)
            os.close(kept)


def _open_closed() -> None:
    """Opens the standard streams that are closed (``>&-``), on nothing. Else the next file that is opened gets the
    number of one, and whatever prints writes into it."""
    for descriptor in (0, _OUT, _ERROR):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = sys.stdout or os.fdopen(_OUT, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(_ERROR, "w", closefd=False)


def drop_unread() -> None:
    """Sends to nowhere what a reader that has left will never take. Python would try to write it once more at its end,
    and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
        except ValueError:  # closed
            continue
