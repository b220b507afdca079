"""A pool of workers (`worker.py`) as one executor: an idle worker gets the next job, a dead one is replaced."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

from evomerge.errors import InputError, TrialError, Where
from evomerge.evaluator.jobs import Job
from evomerge.evaluator.messages import (
    Failed,
    Finished,
    FromWorker,
    Load,
    Logged,
    Noted,
    PhaseStarted,
    Placed,
    Progressed,
    Ready,
    Reported,
    Setup,
    SliceStarted,
    Warned,
)
from evomerge.evaluator.progress import Progress
from evomerge.evaluator.shares import Share, describe, environment
from evomerge.files.objects import FitnessSpec, SpaceSpec
from evomerge.scoring.slices import SuiteInfo

logger = logging.getLogger(__name__)

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from evomerge.evaluator.worker import main; main()"
_TRIES = 2
"""A job whose worker dies is run again by another one; a job that kills two of them has failed."""
_LOOK, _PATIENCE = 1.0, 10.0
"""Seconds between looks at which workers are alive, while none says anything; seconds that a worker has to end."""


class Worker:
    """This process's end of one worker.

    Attributes:
        placed: it has planned its memory.
        ready: it has loaded.
        job: that it runs; None while it is idle.
        holds: the id of the recipe that its model is.
    """

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

    def run(self, job: Job) -> None:
        self.job, self.holds = job, job.recipe.id
        with suppress(OSError):  # a dead worker is noticed when it is listened to
            self.pipe.send(job)

    def load(self) -> None:
        with suppress(OSError):
            self.pipe.send(Load())

    def end(self) -> str:
        """Makes sure that the process has ended; returns how it did, in words."""
        self.pipe.close()
        try:
            code = self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the processes that it started
        if code >= 0:
            return f"exit code {code}"
        return f"{signal.Signals(-code).name}{', out of memory?' if -code == signal.SIGKILL else ''}"


class WorkerPool:
    """The workers of one session, as an `Executor`.

    They load in two steps: all plan their memory, each by its share of the free memory, before any of them takes it.
    What the first one reports while it loads is passed on; afterwards, every slice that one of them begins is.
    """

    info: SuiteInfo
    digests: Mapping[str, str]

    def __init__(
        self, spec: SpaceSpec, fitness: FitnessSpec, shares: Sequence[Share], memory: str | None, progress: Progress
    ) -> None:
        """Starts the workers and waits until they have loaded. Raises InputError where one of them cannot."""
        self._progress = progress
        self.num_workers = len(shares)
        self._queue: deque[Job] = deque()
        self._ended: deque[tuple[Job, Any]] = deque()
        self._tries: Counter[Job] = Counter()
        self._workers: list[Worker] = []
        self._loaded = False  # all have
        self._variables = environment(len(shares), os.environ)
        progress.note(f"workers: {describe(shares)}")
        progress.phase("starting them")
        try:
            for share in shares:
                self._start(Setup(spec, fitness, share, memory))
            while not all(worker.placed for worker in self._workers):
                self._listen()
            for worker in self._workers:
                worker.load()
            while not all(worker.ready for worker in self._workers):
                self._listen()
        except BaseException:
            self.close()
            raise
        self._loaded = True
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
        """Ends all workers, busy or not."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def _start(self, setup: Setup) -> None:
        self._workers.append(Worker(setup, self._variables))

    def _hand_out(self) -> None:
        """Gives waiting jobs to idle workers, to one whose model it is already if there is one."""
        while self._queue and (idle := [w for w in self._workers if w.ready and w.job is None]):
            job = self._queue.popleft()
            min(idle, key=lambda worker: worker.holds != job.recipe.id).run(job)

    def _listen(self) -> None:
        """Takes in the messages of the workers, and replaces dead ones."""
        heard = wait([worker.pipe for worker in self._workers], _LOOK)
        for worker in list(self._workers):
            died = worker.process.poll() is not None  # looked at first: its last messages are still there
            if worker.pipe in heard or died:
                died = not self._hear(worker) or died
            if died:
                self._replace(worker)
        self._hand_out()

    def _hear(self, worker: Worker) -> bool:
        """Takes in all messages of a worker; False where its pipe was closed."""
        try:
            while worker.pipe.poll():
                self._take(worker, worker.pipe.recv())
        except (EOFError, OSError):
            return False
        return True

    def _take(self, worker: Worker, message: FromWorker) -> None:
        match message:
            case Placed():
                worker.placed = True
                if self._loaded:  # a replacement: nobody has to be waited for
                    worker.load()
            case Ready():
                worker.ready, worker.devices = True, message.devices
                self.info, self.digests = message.info, message.digests
            case Finished():
                assert worker.job is not None
                if isinstance(message.result, Exception):
                    worker.holds = None
                self._ended.append((worker.job, message.result))
                worker.job = None
            case Failed():
                if not self._loaded:
                    raise message.error
                logger.warning("worker %d: %s", worker.process.pid, message.error)
            case Logged():
                text = f"worker {worker.process.pid}: {message.text}"
                logging.getLogger(message.logger).log(message.level, "%s", text)
            case SliceStarted():
                self._progress.slice_started(message.name)
            case _:
                if not self._loaded and worker is self._workers[0]:
                    self._report(message)

    def _report(self, message: Reported) -> None:
        match message:
            case PhaseStarted():
                self._progress.phase(message.message)
            case Noted():
                self._progress.note(message.message)
            case Warned():
                self._progress.warn(message.message)
            case Progressed():
                self._progress.progress(message.message, message.done)

    def _replace(self, worker: Worker) -> None:
        """Starts another worker in the place of a dead one, unless that had not even loaded; its job is run again,
        once."""
        self._workers.remove(worker)
        how = worker.end()
        logger.warning("worker %d died (%s)", worker.process.pid, how)
        if not self._loaded:
            raise InputError(f"a worker died while it loaded ({how})", "use fewer --workers", Where("--workers"))
        if worker.ready:
            self._start(worker.setup)
        else:
            self._progress.warn(f"a worker could not be replaced ({how}); {len(self._workers)} are left")
        if worker.job is not None:
            self._retry(worker.job, how)
        if not self._workers:
            raise InputError("no worker is left, and none can be started; the run's search.log says why", "resume it")

    def _retry(self, job: Job, how: str) -> None:
        self._tries[job] += 1
        if self._tries[job] < _TRIES:
            self._progress.warn(f"a worker died ({how}); its candidate is scored again by another")
            self._queue.appendleft(job)
        else:
            self._ended.append((job, TrialError(f"the worker that scored it died twice ({how})")))
