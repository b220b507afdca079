"""A pool of workers (`worker.py`) as one executor: an idle worker gets the next job; a dead one is replaced, and so is
one that hangs."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

from evomerge.checkpoints.pickled import are_allowed
from evomerge.errors import InputError, StoppedError, TrialError, Where
from evomerge.evaluator.jobs import Job
from evomerge.evaluator.messages import (
    Alive,
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
from evomerge.interrupts import deferred
from evomerge.scoring.slices import SuiteInfo

logger = logging.getLogger(__name__)

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from evomerge.evaluator.worker import main; main()"
_TRIES = 2
"""A job whose worker dies is run again by another one; a job that kills two of them has failed."""
_LOOK, _PATIENCE = 1.0, 10.0
"""Seconds between looks at which workers are alive, while none says anything; seconds that a worker has to end."""
_BEAT, _SILENCE = 10.0, 300.0
"""Seconds between two signs of life of a worker; seconds without any after which it counts as hanging. A stopped
process looks like one whose C code holds Python's lock, and some of that is honest work: a regular expression, a large
JSON, a library that is read from a slow disk. So this is minutes; `timeout` of a slice is there for less."""
_DEATHS = 10
"""Workers that may die in a row without one job done between them. A bad candidate kills two; of five such candidates
in a row none is to blame, the machine is."""


class Worker:
    """This process's end of one worker.

    Attributes:
        placed: it has planned its memory.
        ready: it has loaded.
        job: that it runs; None while it is idle.
        holds: the id of the recipe that its model is.
        slice: that it scores.
        silent, scoring: seconds for which it has said nothing, and for which it has been at `slice`.
        fault: why the pool has killed it.
    """

    def __init__(self, setup: Setup, variables: Mapping[str, str]) -> None:
        self.setup = setup
        self.placed = self.ready = False
        self.devices = ""
        self.job: Job | None = None
        self.holds: str | None = None
        self.slice: str | None = None
        self.silent = self.scoring = 0.0
        self.fault: str | None = None
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

    def kill(self) -> None:
        """Kills the process and those that it started, also where it is stopped."""
        with suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _wait(self) -> int | None:
        """The exit code; None where the process does not end in time, as the system does not let go of it."""
        try:
            return self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> str:
        """Makes sure that the process has ended; returns how it did, in words."""
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
        self._deaths = 0  # since a job was done
        self._listened = time.monotonic()
        # Time limits are held here, not in the workers: to kill one ends what no exception in it would.
        self._timeouts = {name: spec.timeout for name, spec in fitness.slices.items()}
        untimed = {name: replace(spec, timeout=None) for name, spec in fitness.slices.items()}
        self._variables = environment(len(shares), os.environ)
        progress.note(f"workers: {describe(shares)}")
        progress.phase("starting them")
        try:
            for share in shares:
                self._start(Setup(spec, replace(fitness, slices=untimed), share, memory, _BEAT, are_allowed()))
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
        """Ends all workers, busy, stopped or idle."""
        with deferred():
            for worker in self._workers:
                worker.kill()
            for worker in self._workers:
                worker.end()
            self._workers.clear()

    def _start(self, setup: Setup) -> None:
        with deferred():
            self._workers.append(Worker(setup, self._variables))

    def _hand_out(self) -> None:
        """Gives waiting jobs to idle workers, to one whose model it is already if there is one."""
        while self._queue and (idle := [w for w in self._workers if w.ready and w.job is None]):
            job = self._queue.popleft()
            min(idle, key=lambda worker: worker.holds != job.recipe.id).run(job)

    def _listen(self) -> None:
        """Takes in the messages of the workers, kills those that hang, and replaces dead ones."""
        heard = wait([worker.pipe for worker in self._workers], _LOOK)
        # Where this process itself stood still, or did something else, it knows nothing of that time.
        before, self._listened = self._listened, time.monotonic()
        passed = min(self._listened - before, 2 * _LOOK)
        for worker in list(self._workers):
            died = worker.process.poll() is not None  # looked at first: its last messages are still there
            worker.silent, worker.scoring = worker.silent + passed, worker.scoring + passed
            if worker.pipe in heard or died:
                died = not self._hear(worker) or died
            if not died and (fault := self._fault(worker)):
                worker.fault, died = fault, True
                worker.kill()
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

    def _fault(self, worker: Worker) -> str | None:
        """Why a worker counts as hanging, if it does."""
        limit = None if worker.slice is None else self._timeouts.get(worker.slice)
        if limit is not None and worker.scoring > limit:
            return f"slice {worker.slice} did not end within {limit:g} s"
        return f"a worker gave no sign of life for {_SILENCE:g} s" if worker.silent > _SILENCE else None

    def _take(self, worker: Worker, message: FromWorker) -> None:
        worker.silent = 0.0
        match message:
            case Alive():
                pass
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
                worker.job = worker.slice = None
                self._deaths = 0
            case Failed():
                if not self._loaded:
                    raise message.error
                logger.warning("worker %d: %s", worker.process.pid, message.error)
            case Logged():
                text = f"worker {worker.process.pid}: {message.text}"
                logging.getLogger(message.logger).log(message.level, "%s", text)
            case SliceStarted():
                worker.slice, worker.scoring = message.name, 0.0
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
        once. StoppedError where no worker is left, or they die one after the other."""
        self._workers.remove(worker)
        how = worker.end()
        cause = worker.fault or f"a worker died ({how})"
        logger.warning("worker %d is replaced: %s", worker.process.pid, cause)
        if not self._loaded:
            cause = worker.fault or f"a worker died while it loaded ({how})"
            raise InputError(cause, "use fewer --workers", Where("--workers"))
        self._deaths += 1
        if self._deaths >= _DEATHS:
            problem = f"{_DEATHS} workers had to be replaced in a row, and no job was done between; the last: {cause}"
            raise StoppedError(
                problem, "the run's search.log says more; resume it, with fewer --workers if memory is short"
            )
        if worker.ready:
            self._start(worker.setup)
        else:
            self._progress.warn(f"a worker could not be replaced ({cause}); {len(self._workers)} are left")
        if worker.job is not None:
            self._retry(
                worker.job,
                cause,
                f"{worker.fault}, twice" if worker.fault else f"the worker that scored it died twice ({how})",
            )
        if not self._workers:
            raise StoppedError("no worker is left, and none can be started; the run's search.log says why", "resume it")

    def _retry(self, job: Job, cause: str, twice: str) -> None:
        self._tries[job] += 1
        if self._tries[job] < _TRIES:
            self._progress.warn(f"{cause}; its candidate is scored again by another")
            self._queue.appendleft(job)
        else:
            self._ended.append((job, TrialError(twice)))
