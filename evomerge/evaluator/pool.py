"""Several workers (`evaluator/worker.py`) as one scorer: who is free gets the next job, who dies is replaced."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from evomerge.errors import InputError, TrialError, Where
from evomerge.evaluator.executor import Job
from evomerge.evaluator.shares import Share, environment, told
from evomerge.evaluator.worker import Setup
from evomerge.scoring.slices import SuiteInfo
from evomerge.study.observer import Observer
from evomerge.study.prepare import Plan

logger = logging.getLogger(__name__)

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from evomerge.evaluator.worker import main; main()"
_TRIES = 2
"""A job whose worker dies is done again by another one; one that kills two of them has failed."""
_LOOK, _PATIENCE = 1.0, 10.0
"""Seconds between looks at who is alive, where nothing is heard; seconds that a worker has to end."""


class Worker:
    """This process's end of one worker. `ready` once it has loaded; `job` is what it does, `holds` the recipe that its
    model is."""

    def __init__(self, setup: Setup, variables: Mapping[str, str]) -> None:
        self.setup = setup
        self.placed = self.ready = False
        self.devices = ""
        self.job: Job | None = None
        self.holds: str | None = None
        self.pipe, far = Pipe()
        command = [sys.executable, "-c", _START, str(far.fileno()), json.dumps(sys.path)]
        # Not by multiprocessing, which runs the user's own script again in each process. Prints go to stderr (2).
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=2, env=variables, pass_fds=[far.fileno()], process_group=0
        )
        far.close()
        self.pipe.send(setup)

    def give(self, job: Job) -> None:
        self.job = job
        if job.recipe is not None:
            self.holds = job.recipe.id
        with suppress(OSError):  # who died is noticed when it is listened to
            self.pipe.send(job)

    def load(self) -> None:
        with suppress(OSError):
            self.pipe.send("load")

    def end(self) -> str:
        """See to it that the process has ended; how it did, in words."""
        self.pipe.close()
        try:
            code = self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)  # those that it started
        if code >= 0:
            return f"exit code {code}"
        return f"{signal.Signals(-code).name}{', out of memory?' if -code == signal.SIGKILL else ''}"


class WorkerPool:
    """The workers of one session.

    They load in two steps: all plan what lives where, each by its share of what is free, before any of them takes
    memory. What the first one sees is what the observer is told; all tell which slice they are at.
    """

    outline: SuiteInfo
    digests: Mapping[str, str]

    def __init__(self, plan: Plan, shares: list[Share], memory: str | None, observer: Observer) -> None:
        """Start the workers and wait until they have loaded. Raises InputError, for whatever is wrong for one of
        them."""
        self._observer = observer
        self.hands = len(shares)
        self._queue: deque[Job] = deque()
        self._ended: deque[tuple[Job, Any]] = deque()
        self._tries: Counter[Job] = Counter()
        self._workers: list[Worker] = []
        self._complete = False  # all have loaded
        self._variables = environment(len(shares), os.environ)
        observer.note(f"workers: {told(shares)}")
        observer.phase("starting them")
        try:
            for share in shares:
                self._start(Setup(plan.spec, plan.fitness, share, memory))
            while not all(worker.placed for worker in self._workers):
                self._listen()
            for worker in self._workers:
                worker.load()
            while not all(worker.ready for worker in self._workers):
                self._listen()
        except BaseException:
            self.close()
            raise
        self._complete = True
        self.devices = ",".join(dict.fromkeys(d for worker in self._workers for d in worker.devices.split(",")))

    @property
    def processes(self) -> list[int]:
        """The ids of the workers' processes."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, job: Job) -> None:
        self._queue.append(job)
        self._hand_out()

    def result(self) -> tuple[Job, Any]:
        while not self._ended:
            self._listen()
        return self._ended.popleft()

    def close(self) -> None:
        """End all workers, whatever they do."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _start(self, setup: Setup) -> Worker:
        worker = Worker(setup, self._variables)
        self._workers.append(worker)
        return worker

    def _hand_out(self) -> None:
        """Give waiting jobs to idle workers, to one whose model it is already if there is one."""
        while self._queue and (idle := [w for w in self._workers if w.ready and w.job is None]):
            job = self._queue.popleft()
            wanted = job.recipe.id if job.recipe is not None else None
            min(idle, key=lambda worker: worker.holds != wanted).give(job)

    def _listen(self) -> None:
        """Take in what workers say; notice who died."""
        heard = wait([worker.pipe for worker in self._workers], _LOOK)
        for worker in list(self._workers):
            died = worker.process.poll() is not None  # looked at first: what it said last is still there
            if worker.pipe in heard or died:
                died = not self._hear(worker.pipe, worker) or died
            if died:
                self._replace(worker)
        self._hand_out()

    def _hear(self, pipe: Connection, worker: Worker) -> bool:
        """Take in all that is there; False where the pipe was closed."""
        try:
            while pipe.poll():
                kind, *what = pipe.recv()
                getattr(self, f"_hear_{kind}")(worker, *what)
        except (EOFError, OSError):
            return False
        return True

    def _hear_observe(self, worker: Worker, method: str, *what: Any) -> None:
        if method == "slice_started" or (not self._complete and worker is self._workers[0]):
            getattr(self._observer, method)(*what)

    def _hear_log(self, worker: Worker, name: str, level: int, text: str) -> None:
        logging.getLogger(name).log(level, "worker %d: %s", worker.process.pid, text)

    def _hear_placed(self, worker: Worker) -> None:
        worker.placed = True
        if self._complete:
            worker.load()

    def _hear_ready(self, worker: Worker, outline: SuiteInfo, digests: Mapping[str, str], devices: str) -> None:
        worker.ready, worker.devices = True, devices
        self.outline, self.digests = outline, digests

    def _hear_result(self, worker: Worker, result: Any) -> None:
        assert worker.job is not None
        if isinstance(result, Exception):
            worker.holds = None
        self._ended.append((worker.job, result))
        worker.job = None

    def _hear_error(self, worker: Worker, error: InputError) -> None:
        """It could not load."""
        if not self._complete:
            raise error
        logger.warning("worker %d: %s", worker.process.pid, error)

    def _replace(self, worker: Worker) -> None:
        """Start another in the place of one that died, unless it had not even loaded; its job is done again, once."""
        self._workers.remove(worker)
        how = worker.end()
        logger.warning("worker %d died (%s)", worker.process.pid, how)
        if not self._complete:
            raise InputError(f"a worker died while it loaded ({how})", "use fewer --workers", Where("--workers"))
        if worker.ready:
            self._start(worker.setup)
        else:
            self._observer.warn(f"a worker could not be replaced ({how}); {len(self._workers)} are left")
        if worker.job is not None:
            self._retry(worker.job, how)
        if not self._workers:
            raise InputError("no worker is left, and none can be started; the run's search.log says why", "resume it")

    def _retry(self, job: Job, how: str) -> None:
        self._tries[job] += 1
        if self._tries[job] < _TRIES:
            self._observer.warn(f"a worker died ({how}); its candidate is scored again by another")
            self._queue.appendleft(job)
        else:
            self._ended.append((job, TrialError(f"the worker that scored it died twice ({how})")))
