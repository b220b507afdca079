"""Executors run jobs: on a model in this process, or on a pool of workers (`pool.py`).

A candidate needs one job after another, and is written down between them. So it is a generator (`EvalTask`) that yields
jobs and is sent their results, and `run_tasks` runs several of them at a time. Everything that is not scoring happens
in one thread of one process.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from evomerge.errors import InputError, LostModelError, TrialError, is_disk_full
from evomerge.evaluator.jobs import EvalTask, Job
from evomerge.evaluator.progress import Progress
from evomerge.interrupts import recognized
from evomerge.scoring.slices import SuiteInfo

if TYPE_CHECKING:
    from evomerge.evaluator.evaluator import Evaluator

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Executor(Protocol):
    """Runs `num_workers` jobs at a time.

    Attributes:
        num_workers: how many jobs run side by side.
        info: the slices that it scores.
        digests: slice -> digest of its items.
        devices: where its models are.
    """

    @property
    def num_workers(self) -> int: ...

    @property
    def info(self) -> SuiteInfo: ...

    @property
    def digests(self) -> Mapping[str, str]: ...

    @property
    def devices(self) -> str: ...

    def submit(self, job: Job) -> None: ...

    def result(self) -> tuple[Job, Any]:
        """The next job that ended, with its result; an exception is returned."""
        ...


class InProcess:
    """Runs one job at a time on the evaluator of this process."""

    num_workers = 1

    def __init__(self, evaluator: Evaluator, progress: Progress) -> None:
        self._evaluator, self._progress = evaluator, progress
        self.info, self.digests = evaluator.suite.info, evaluator.suite.items_digest()
        self.devices: str = evaluator.resident.devices
        self._queue: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def result(self) -> tuple[Job, Any]:
        job = self._queue.popleft()
        return job, run_job(job, self._evaluator, self._progress.slice_started)


def run_job(job: Job, evaluator: Evaluator, on_slice: Callable[[str], None]) -> Any:
    """The result of a job, or its exception: any error is the candidate's failure, but for a full disk and a lost
    model."""
    try:
        with recognized():
            return job.run(evaluator, on_slice)
    except (TrialError, InputError, LostModelError) as error:
        return error
    except Exception as error:
        if is_disk_full(error):
            return error
        logger.exception("a candidate cannot be scored")
        return TrialError(f"{type(error).__name__}: {error}")


@dataclass(eq=False)
class _Waiting(Generic[T]):
    """A task that waits for the results of its jobs."""

    task: EvalTask[T]
    jobs: Sequence[Job]
    together: bool
    results: dict[Job, Any] = field(default_factory=dict)

    def resume(self) -> Job | Sequence[Job]:
        """Hands the results to the task; returns the jobs that it yields next."""
        results = [self.results[job] for job in self.jobs]
        if self.together:
            return self.task.send(results)
        return self.task.throw(results[0]) if isinstance(results[0], Exception) else self.task.send(results[0])


def run_tasks(
    executor: Executor, next_task: Callable[[], EvalTask[T] | None], at_once: int | None = None
) -> Iterator[T]:
    """Runs tasks side by side and yields their results as they end. What a task raises is raised here.

    Args:
        executor: runs the jobs.
        next_task: returns the next task whenever one can begin, and None while there is none. The end is when no task
            is running and there is none.
        at_once: the most tasks that run side by side; default: as many as the executor has workers.
    """
    waiting: dict[Job, _Waiting[T]] = {}
    running = 0

    def advance(task: EvalTask[T], step: Callable[[], Job | Sequence[Job]]) -> Iterator[T]:
        nonlocal running
        try:
            yielded = step()
        except StopIteration as end:
            running -= 1
            yield end.value
            return
        together = isinstance(yielded, Sequence)
        state = _Waiting(task, yielded if isinstance(yielded, Sequence) else (yielded,), together)
        for job in state.jobs:
            waiting[job] = state
            executor.submit(job)
        if not state.jobs:
            yield from advance(task, state.resume)

    while True:
        # Looked at each time: a pool may grow.
        most = executor.num_workers if at_once is None else min(executor.num_workers, at_once)
        while running < most and (task := next_task()) is not None:
            running += 1
            yield from advance(task, partial(next, task))
        if not running:
            return
        job, result = executor.result()
        state = waiting.pop(job)
        state.results[job] = result
        if len(state.results) == len(state.jobs):
            yield from advance(state.task, state.resume)


def run_all(executor: Executor, tasks: Iterable[EvalTask[T]], at_once: int | None = None) -> Iterator[T]:
    """Runs the given tasks (`run_tasks`). The next one is only begun when a worker is free."""
    left = iter(tasks)
    return run_tasks(executor, lambda: next(left, None), at_once)
