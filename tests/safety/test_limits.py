from __future__ import annotations

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
