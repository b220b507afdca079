"""Searches of a benchmark: each a command of its own, as a user would type it, with one thread."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import evomerge
from evomerge.study.after.status import Status
from evomerge.study.run.release import Release

NO_WINNER = 1
"""A search's exit code."""


@dataclass(frozen=True)
class Ended:
    """A search that came to its end; `seconds` of the whole command."""

    status: Status
    release: Release
    seconds: float


def search(place: Path, write: Callable[[], Path], *options: str) -> Ended:
    """Search the space file that `write` writes into `place`. One that ended is not run again; one that was cut short
    begins anew, as it is timed. Exits where a search fails, and says where its log is."""
    timed = place / "wall.json"
    if not timed.is_file():
        shutil.rmtree(place, ignore_errors=True)
        command = ["search", str(write()), "--run", str(place / "run"), *options]
        started = time.perf_counter()
        with (place / "log.txt").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [sys.executable, "-m", "evomerge", *command], env=environment, stdout=log, stderr=log, check=False
            )
        if done.returncode not in (0, NO_WINNER):
            sys.exit(f"a search ended with {done.returncode}: {place / 'log.txt'} says why")
        timed.write_text(json.dumps(time.perf_counter() - started))
    status = evomerge.status(place / "run")
    assert status.release is not None
    return Ended(status, status.release, json.loads(timed.read_text()))
