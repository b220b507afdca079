"""A worker without a model, which takes no time to load, and jobs that only it can do."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from evomerge.errors import InputError, TrialError
from evomerge.evaluator.executor import run_job
from evomerge.evaluator.messages import Failed, Finished, Placed, Ready, SliceStarted
from evomerge.evaluator.worker import WorkerPipe
from evomerge.scoring.slices import SuiteInfo

START = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from tests.evaluator.fake_worker import main; main()"


def _loop() -> None:
    while True:
        pass


def _hold_the_lock() -> None:
    """C code that does not let other threads of Python run, for a day."""
    ctypes.PyDLL(None).sleep(86400)


HOW: dict[str, Callable[[], Any]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "abort": os.abort,
    "exit": lambda: os._exit(0),
    "loop": _loop,
    "child": lambda: subprocess.run(["sleep", "600"], check=False),
    "lock": _hold_the_lock,
}


@dataclass(frozen=True, eq=False)
class Saying:
    """Gives what it says, or dies (`how`): each time, or unless `marker`, which it makes, is there."""

    word: str
    dies: bool = False
    marker: str | None = None
    how: str = "kill"
    recipe: Any = field(default_factory=lambda: SimpleNamespace(id="none"))

    def run(self, bench: Any, on_slice: Any) -> Any:
        on_slice(self.word)
        if self.dies or (self.marker and not os.path.exists(self.marker)):
            if self.marker:
                open(self.marker, "w").close()
            HOW[self.how]()
        if self.how == "work":
            time.sleep(3)
        if self.word == "no":
            raise TrialError("no")
        return self.word, os.getpid(), int(os.environ["OMP_NUM_THREADS"])


def main() -> None:
    pipe = WorkerPipe(int(sys.argv[1]))
    setup = pipe.receive()
    pipe.show_life(setup.beat)
    if setup.share.device == "nowhere":
        pipe.send(Failed(InputError("no device 'nowhere' here", "use cpu")))
        return
    if setup.share.device == "deadly" or os.path.exists(setup.share.device):
        os.kill(os.getpid(), 9)
    pipe.send(Placed())
    pipe.receive()
    pipe.send(Ready(SuiteInfo({}, ()), {}, setup.share.device))
    while True:
        result = run_job(pipe.receive(), None, lambda name: pipe.send(SliceStarted(name)))  # type: ignore[arg-type]
        pipe.send(Finished(result))
