from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from evomerge.safety.limits import OutOfTime, TimeLimit


def _loop() -> None:
    with TimeLimit(0.05):
        while True:
            pass


def test_a_loop_ends() -> None:
    with pytest.raises(OutOfTime):
        _loop()


def test_in_any_thread() -> None:
    ended: list[str] = []

    def work() -> None:
        try:
            _loop()
        except OutOfTime:
            ended.append("out of time")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert ended == ["out of time"]


def test_what_ends_in_time_is_left_alone() -> None:
    for _ in range(50):
        with TimeLimit(60):
            pass
        with suppress(OutOfTime), TimeLimit(0.0005):
            pass
    sum(range(100_000))


TRACED = """
import sys
from contextlib import suppress
from evomerge.safety.limits import OutOfTime, TimeLimit

for seconds in (60, *[0.0005] * 50):
    with suppress(OutOfTime), TimeLimit(seconds):
        sum(range(1000))
sys.settrace(lambda *about: None)
print(sum(map(lambda number: number, range(10))))
"""


def test_code_that_is_traced_afterwards_goes_on() -> None:
    """Under a debugger, a profiler, or what measures coverage: an exception that never comes was waited for."""
    done = subprocess.run([sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "45\n"
