"""Ctrl-C, SIGTERM, a closed terminal: obeyed at once, but not in the middle of a write, and never lost or mistaken for
an error.

Python raises KeyboardInterrupt at whatever line is running. Inside a library that is the wrong place now and then: a
lock file is renamed and then not found, a file is closed before its writer, a destructor or a callback swallows the
interruption and the program goes on. So writes defer it (`deferred`), and what is worth recording is made where it is
recognized (`recognized`), whatever a library made of it. Workers are processes of their own, and hear neither.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Ear(threading.local):
    """What was heard, and whether it may be obeyed now. Each thread has its own, as only the main one is interrupted:
    what another one writes does not make it wait, and what fails there has other causes."""

    def __init__(self) -> None:
        self.heard = self.waiting = False
        self.depth = 0

    def hear(self, number: int, frame: object) -> None:
        """A signal's handler. One that waits already is not made to wait again: a second one is obeyed."""
        self.heard = True
        self.waiting = self.depth > 0 and not self.waiting
        if not self.waiting:
            raise KeyboardInterrupt


_ear = _Ear()


@contextmanager
def listening(*others: signal.Signals) -> Iterator[None]:
    """Until the end, Ctrl-C and the `others` are KeyboardInterrupt, and so is an error that came of one. A handler for
    Ctrl-C that is not Python's own stays, one of the `others` that is ignored (nohup) stays ignored, and all of them
    stay in another thread than the main one. Also a decorator."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []
    ours += [number for number in others if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _ear.hear) for number in ours}
    try:
        with seen_through():
            yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == _ear.hear:
                signal.signal(number, handler)
        if before:  # the outermost; what comes after it was not interrupted
            _ear.heard = _ear.waiting = False


@contextmanager
def recognized() -> Iterator[None]:
    """KeyboardInterrupt, in place of any error and of a normal end, if an interruption was heard."""
    with seen_through():
        yield
    if _ear.heard:
        raise KeyboardInterrupt


@contextmanager
def seen_through() -> Iterator[None]:
    """KeyboardInterrupt in place of an error that came after an interruption."""
    try:
        yield
    except Exception as error:
        if _ear.heard:
            raise KeyboardInterrupt from error
        raise


@contextmanager
def deferred() -> Iterator[None]:
    """An interruption waits for the end: for writes that take moments. Also a decorator."""
    _ear.depth += 1
    try:
        yield
    finally:
        _ear.depth -= 1
        if not _ear.depth and _ear.waiting:
            _ear.waiting = False
            raise KeyboardInterrupt


def raised_by_code() -> bool:
    """Whether a KeyboardInterrupt that is being handled was raised by code, as we listen and heard no signal."""
    return signal.getsignal(signal.SIGINT) in (_ear.hear, signal.SIG_IGN, signal.SIG_DFL) and not _ear.heard


def answered() -> None:
    """The interruption that was heard has had its effect: what goes wrong from now on has other causes."""
    _ear.heard = False


def ignore() -> None:
    """No signal that can be ignored does anything from now on: the process is ending anyway."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    # After an interruption of text that is executed (a dataclass is) `python -m` ends by SIGINT, not with the code that
    # we exit with, unless more text is executed.
    exec("")
