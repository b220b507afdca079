"""Bounds on work that input decides: a template that loops, a pattern that backtracks, a layer count of a billion."""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress
from types import TracebackType

_raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc


class OutOfTime(Exception):
    """The work inside a `TimeLimit` took too long."""


class TimeLimit:
    """A context in which Python code of this thread may run for `seconds`, then `OutOfTime` is raised in it.

    The exception comes between two steps of Python code: one call of a C function (a regular expression, a product of a
    text and a large number) is not ended by it. For regular expressions there is `regex` with its `timeout`.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._thread = seconds, 0
        self._lock, self._done = threading.Lock(), False

    def __enter__(self) -> TimeLimit:
        self._thread = threading.get_ident()
        self._timer = threading.Timer(min(self._seconds, threading.TIMEOUT_MAX), self._expire)
        self._timer.daemon = True
        self._timer.start()
        return self

    def _expire(self) -> None:
        with self._lock:
            if not self._done:
                _raise_in_thread(ctypes.c_ulong(self._thread), ctypes.py_object(OutOfTime))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._done = True
            # One that was raised in the last moment, and has not arrived yet, is taken back.
            _raise_in_thread(ctypes.c_ulong(self._thread), None)
        self._timer.cancel()


class MemoryLimit:
    """A context in which this process may take `count` bytes more than it has, then Python code meets a MemoryError.

    It bounds one call of a C function, such as a product of a text and a large number, which `TimeLimit` cannot. Other
    threads meet it as well, so it is for work that takes moments. Where the system keeps no such limit (it is Linux
    that does), nothing is bounded.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._before: tuple[int, int] | None = None

    def __enter__(self) -> MemoryLimit:
        with suppress(ImportError, OSError, ValueError):
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            with open("/proc/self/statm", encoding="ascii") as stream:
                most = int(stream.read().split()[0]) * resource.getpagesize() + self._count
            if soft == resource.RLIM_INFINITY or most < soft:
                resource.setrlimit(resource.RLIMIT_AS, (most, hard))
                self._before = soft, hard
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, self._before)
