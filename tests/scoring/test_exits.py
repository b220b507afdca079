"""The code of tasks and scorers does not end the program."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.scoring.guard import ExitCalled, undisturbed


def cancelled() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("end", [lambda: sys.exit(0), lambda: os._exit(0), lambda: os.abort(), cancelled])
def test_what_would_end_it_is_an_error(end: Callable[[], Any]) -> None:
    before = os._exit, os.abort
    with pytest.raises(ExitCalled), undisturbed():
        end()
    assert (os._exit, os.abort) == before


def test_ctrl_c_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), undisturbed():
        raise KeyboardInterrupt


def test_a_process_of_its_own_may_end() -> None:
    with undisturbed():
        child = os.fork()
        if not child:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("ends", ["return", "raise ValueError"])
def test_a_process_that_it_forks_does_not_go_on_in_its_place(ends: str, tmp_path: Path) -> None:
    code = f"""
import os
from evomerge.scoring.guard import undisturbed

def scorer():
    if not os.fork():
        {ends}
    os.wait()

try:
    with undisturbed():
        scorer()
finally:
    open("drivers", "a").write("one ")
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "drivers").read_text() == "one "
