"""A pool of workers (`worker.py`) as one executor: an idle worker gets the next job; a dead one is replaced, and so is
one that hangs."""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from evomerge.checkpoints.pickled import are_allowed
from evomerge.errors import InputError, StoppedError, TrialError, Where
from evomerge.evaluator.jobs import Job
from evomerge.evaluator.messages import (
    Alive,
    Ended,
    Failed,
    Finished,
    FromWorker,
    Logged,
    Noted,
    PhaseStarted,
    Placed,
    Progressed,
    Ready,
    Refused,
    Reported,
    Setup,
    SliceStarted,
    Warned,
)
from evomerge.evaluator.progress import Progress
from evomerge.evaluator.shares import Share, describe, environment
from evomerge.evaluator.worker_process import Worker, WorkerProcess
from evomerge.files.objects import FitnessSpec, SpaceSpec
from evomerge.interrupts import deferred
from evomerge.scoring.slices import SuiteInfo

logger = logging.getLogger(__name__)

_TRIES = 2
"""A job whose worker dies is run again by another one; a job that kills two of them has failed."""
_PARTING = 2.0
"""Seconds that workers have to end by themselves."""

_LOOK = 1.0
"""Seconds between looks at which workers are alive, while none says anything."""
_BEAT, _SILENCE = 10.0, 300.0
"""Seconds between two signs of life of a worker; seconds without any after which it counts as hanging. A stopped
process looks like one whose C code holds Python's lock, and some of that is honest work: a regular expression, a large
JSON, a library that is read from a slow disk. So this is minutes; `timeout` of a slice is there for less."""
_DEATHS = 10
"""Workers that may die in a row without one job done between them. A bad candidate kills two; of five such candidates
in a row none is to blame, the machine is."""


class Pool(ABC):
    """The workers of one session, as an `Executor`.

    They load in two steps: all of a machine plan their memory, each by its share of what is free, before any of them
    takes it. What the first one reports while it loads is passed on; afterwards, every slice that one of them begins.
    """

    info: SuiteInfo

    def __init__(
        self, spec: SpaceSpec, fitness: FitnessSpec, memory: str | None, num_workers: int, progress: Progress
    ) -> None:
        self.num_workers = num_workers
        self.digests: Mapping[str, str] = {}
        self._progress = progress
        self._queue: deque[Job] = deque()
        self._ended: deque[tuple[Job, Any]] = deque()
        self._tries: Counter[Job] = Counter()
        self._workers: list[Worker] = []
        self._loaded = False  # those that the search begins with have
        self._deaths = 0  # since a job was done
        self._listened = time.monotonic()
        # Time limits are held here, not in the workers: to kill one ends what no exception in it would.
        self._timeouts = {name: spec.timeout for name, spec in fitness.slices.items()}
        untimed = {name: replace(spec, timeout=None) for name, spec in fitness.slices.items()}
        fitness = replace(fitness, slices=untimed)
        self._setup = Setup(spec, fitness, Share("cpu"), memory, _BEAT, are_allowed())

    @abstractmethod
    def _heard(self, seconds: float) -> Collection[Worker]:
        """The workers that have something to say; waits for so many seconds at most while there is none."""

    @property
    def devices(self) -> str:
        """Where the models are."""
        return ",".join(dict.fromkeys(d for worker in self._workers for d in worker.devices.split(",") if d))

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
                worker.dismiss()
            end = time.monotonic() + _PARTING
            while any(not worker.has_died() for worker in self._workers) and time.monotonic() < end:
                time.sleep(0.01)
            for worker in self._workers:
                worker.kill()
            for worker in self._workers:
                worker.end()
            self._workers.clear()

    def _hand_out(self) -> None:
        """Gives waiting jobs to idle workers, to one whose model it is already if there is one."""
        while self._queue and (idle := [w for w in self._workers if w.ready and w.job is None]):
            job = self._queue.popleft()
            min(idle, key=lambda worker: worker.holds != job.recipe.id).run(job)

    def _listen(self) -> None:
        """Takes in the messages of the workers, kills those that hang, and replaces dead ones."""
        heard = self._heard(_LOOK)
        # Where this process itself stood still, or did something else, it knows nothing of that time.
        before, self._listened = self._listened, time.monotonic()
        passed = min(self._listened - before, 2 * _LOOK)
        for worker in list(self._workers):
            died = worker.has_died()  # looked at first: its last messages are still there
            worker.silent, worker.scoring = worker.silent + passed, worker.scoring + passed
            if worker in heard or died:
                died = not self._hear(worker) or died
            if not died and (fault := self._fault(worker)):
                worker.fault, died = fault, True
                worker.kill()
            if died:
                self._replace(worker)
        for worker in self._workers:
            together = [other.placed for other in self._workers if other.host == worker.host]
            if not worker.loading and all(together):
                worker.load()
        self._hand_out()

    def _hear(self, worker: Worker) -> bool:
        """Takes in all messages of a worker; False where its pipe was closed."""
        try:
            for message in worker.messages():
                self._take(worker, message)
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
            case Ready():
                worker.ready, worker.devices = True, message.devices
                self.info, self.digests = message.info, message.digests
            case Finished():
                assert worker.job is not None
                if isinstance(message.result, Exception):
                    worker.holds = None
                job, worker.job, worker.slice = worker.job, None, None
                self._deaths = 0
                self._answer(worker, job, message.result)
            case Failed():
                if not self._loaded:
                    raise message.error
                logger.warning("%s: %s", worker.name, message.error)
            case Logged():
                text = f"{worker.name}: {message.text}"
                logging.getLogger(message.logger).log(message.level, "%s", text)
            case SliceStarted():
                worker.slice, worker.scoring = message.name, 0.0
                self._progress.slice_started(message.name)
            case Refused() | Ended():
                raise AssertionError("said by workers of a cluster")
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

    def _answer(self, worker: Worker, job: Job, result: Any) -> None:
        """Takes in the result of a worker's job."""
        self._ended.append((job, result))

    def _replace(self, worker: Worker) -> None:
        """Removes a dead worker; its job is run again, once. StoppedError where no worker is left, or they die one
        after the other."""
        self._workers.remove(worker)
        how = worker.end()
        cause = worker.fault or f"a worker died ({how})"
        logger.warning("%s is replaced: %s", worker.name, cause)
        self._succeed(worker, cause)
        if worker.job is not None:
            self._retry(
                worker.job,
                cause,
                f"{worker.fault}, twice" if worker.fault else f"the worker that scored it died twice ({how})",
            )
        self._check_left()

    @abstractmethod
    def _succeed(self, worker: Worker, cause: str) -> None:
        """Starts another worker in the place of a dead one, if one can be had."""

    @abstractmethod
    def _check_left(self) -> None:
        """StoppedError where no worker is left, and none is to come."""

    def _count_death(self, cause: str, most: int) -> None:
        """StoppedError where so many workers died in a row."""
        self._deaths += 1
        if self._deaths >= most:
            problem = f"{most} workers had to be replaced in a row, and no job was done between; the last: {cause}"
            raise StoppedError(
                problem, "the run's search.log says more; resume it, with fewer --workers if memory is short"
            )

    def _retry(self, job: Job, cause: str, twice: str) -> None:
        self._tries[job] += 1
        if self._tries[job] < _TRIES:
            self._progress.warn(f"{cause}; its candidate is scored again by another")
            self._queue.appendleft(job)
        else:
            self._ended.append((job, TrialError(twice)))


class WorkerPool(Pool):
    """Workers on this machine."""

    def __init__(
        self, spec: SpaceSpec, fitness: FitnessSpec, shares: Sequence[Share], memory: str | None, progress: Progress
    ) -> None:
        """Starts the workers and waits until they have loaded. Raises InputError where one of them cannot."""
        super().__init__(spec, fitness, memory, len(shares), progress)
        self._variables = environment(len(shares), os.environ)
        progress.note(f"workers: {describe(shares)}")
        progress.phase("starting them")
        try:
            for share in shares:
                self._start(replace(self._setup, share=share))
            while not all(worker.ready for worker in self._workers):
                self._listen()
        except BaseException:
            self.close()
            raise
        self._loaded = True

    @property
    def processes(self) -> list[int]:
        """The ids of the workers' processes."""
        return [worker.process.pid for worker in self._workers if isinstance(worker, WorkerProcess)]

    def _start(self, setup: Setup) -> None:
        with deferred():
            self._workers.append(WorkerProcess(setup, self._variables))

    def _succeed(self, worker: Worker, cause: str) -> None:
        """Starts another one, unless the dead one had not even loaded."""
        if not self._loaded:
            how = worker.fault or cause.replace("a worker died", "a worker died while it loaded", 1)
            raise InputError(how, "use fewer --workers", Where("--workers"))
        self._count_death(cause, _DEATHS)
        if worker.ready:
            self._start(worker.setup)
        else:
            self._progress.warn(f"a worker could not be replaced ({cause}); {len(self._workers)} are left")

    def _check_left(self) -> None:
        if not self._workers:
            raise StoppedError("no worker is left, and none can be started; the run's search.log says why", "resume it")

    def _heard(self, seconds: float) -> Collection[Worker]:
        pipes = {worker.pipe: worker for worker in self._workers if isinstance(worker, WorkerProcess)}
        return [pipes[pipe] for pipe in wait(list(pipes), seconds) if isinstance(pipe, Connection)]
