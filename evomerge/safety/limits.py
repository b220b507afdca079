"""Bounds on work that input decides: a template that loops, a pattern that backtracks, a layer count of a billion."""

from __future__ import annotations

import ctypes
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

_raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc


class OutOfTime(BaseException):
    """The work inside a `TimeLimit` took too long. No Exception, as KeyboardInterrupt is none: code that catches all of
    those would go on otherwise."""


class TimeLimit:
    """A context in which Python code of this thread may run for `seconds`, then `OutOfTime` is raised in it.

    The exception comes between two steps of Python code: one call of a C function (a regular expression, a product of a
    text and a large number) is not ended by it. For regular expressions there is `regex` with its `timeout`.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._thread = seconds, 0
        self._lock, self._done, self._raised = threading.Lock(), False, False

    def __enter__(self) -> TimeLimit:
        self._thread = threading.get_ident()
        self._timer = threading.Timer(min(self._seconds, threading.TIMEOUT_MAX), self._expire)
        self._timer.daemon = True
        self._timer.start()
        return self

    def _expire(self) -> None:
        with self._lock:
            if not self._done:
                self._raised = True
                _raise_in_thread(ctypes.c_ulong(self._thread), ctypes.py_object(OutOfTime))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._lock:
                self._done = True
            # One that was raised in the last moment arrives in a step of this loop. Python has a call that takes it
            # back, but Python 3.11 then waits for it in vain as soon as the code is traced or profiled.
            for _ in range(100 if self._raised and kind is not OutOfTime else 0):
                pass
        except OutOfTime:
            pass
        self._timer.cancel()


@contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """A context in which this process can take `extra` bytes more than it has; then Python raises MemoryError. It is
    for moments, as it holds for all threads. Where the system has no such limit, there is none."""
    lowered = False
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        bound = taken + extra
        lowered = soft == resource.RLIM_INFINITY or bound < soft
        if lowered:
            resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    except (OSError, ValueError):
        pass
    try:
        yield
    finally:
        if lowered:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
