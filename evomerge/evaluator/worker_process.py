"""The driver's end of a worker, and that of a worker that is a process of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing import Pipe

from evomerge.evaluator.jobs import Job
from evomerge.evaluator.messages import FromWorker, Load, Setup

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from evomerge.evaluator.worker import main; main()"
_PATIENCE = 10.0
"""Seconds that a worker has to end."""


class Worker(ABC):
    """The driver's end of one worker.

    Attributes:
        name: in messages.
        host: the machine whose memory it shares with others of the pool.
        placed: it has planned its memory.
        loading: it may take that memory.
        ready: it has loaded.
        job: that it runs; None while it is idle.
        holds: the id of the recipe that its model is.
        slice: that it scores.
        silent, scoring: seconds for which it has said nothing, and for which it has been at `slice`.
        fault: why the pool has killed it.
    """

    name: str
    host = ""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.placed = self.loading = self.ready = False
        self.devices = ""
        self.job: Job | None = None
        self.holds: str | None = None
        self.slice: str | None = None
        self.silent = self.scoring = 0.0
        self.fault: str | None = None

    @abstractmethod
    def send(self, message: Load | Job) -> None:
        """Sends a message. A dead worker is noticed when it is listened to."""

    @abstractmethod
    def messages(self) -> Iterator[FromWorker]:
        """What it has said since this was asked last. EOFError or OSError where it is gone."""

    @abstractmethod
    def has_died(self) -> bool: ...

    def dismiss(self) -> None:
        """Has it end, and remove what it has on disk, where it can."""
        self.kill()

    @abstractmethod
    def kill(self) -> None:
        """Kills the process and those that it started, also where it is stopped."""

    @abstractmethod
    def end(self) -> str:
        """Makes sure that the process has ended; returns how it did, in words."""

    def run(self, job: Job) -> None:
        self.job, self.holds = job, job.recipe.id
        self.send(job)

    def load(self) -> None:
        self.loading = True
        self.send(Load())


class WorkerProcess(Worker):
    """A worker that is a process of this machine, and a child of this one."""

    def __init__(self, setup: Setup, variables: Mapping[str, str]) -> None:
        super().__init__(setup)
        self.pipe, far = Pipe()
        command = [sys.executable, "-c", _START, str(far.fileno()), json.dumps(sys.path)]
        # Not by multiprocessing, which runs the user's own script again in each process. Prints go to stderr (2).
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=2, env=variables, pass_fds=[far.fileno()], process_group=0
        )
        self.name = f"worker {self.process.pid}"
        far.close()
        self.pipe.send(setup)

    def send(self, message: Load | Job) -> None:
        with suppress(OSError):
            self.pipe.send(message)

    def messages(self) -> Iterator[FromWorker]:
        while self.pipe.poll():
            yield self.pipe.recv()

    def has_died(self) -> bool:
        return self.process.poll() is not None

    def dismiss(self) -> None:
        self.pipe.close()  # which it notices at any time

    def kill(self) -> None:
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _wait(self) -> int | None:
        """The exit code; None where the process does not end in time, as the system does not let go of it."""
        try:
            return self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> str:
        self.pipe.close()
        code = self._wait()
        self.kill()  # a process that did not end, and those that it started
        code = self._wait() if code is None else code
        if code is None:
            return "it does not end"
        if code >= 0:
            return f"exit code {code}"
        if code == -signal.SIGKILL:
            return "SIGKILL, out of memory?"
        return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
