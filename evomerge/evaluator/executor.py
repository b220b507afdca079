"""Who scores: a model in this process, or several workers (`evaluator/pool.py`). What is to be scored goes in, as many
jobs at a time as there are hands; results come out as they end.

A candidate takes one job after another, and what becomes of it is written down between them. So it is a generator
(`EvalTask`) that yields jobs and is sent their results, and `drive` runs several of them: all that is not scoring
happens in one thread of one process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from evomerge.errors import InputError, TrialError
from evomerge.interrupts import recognized
from evomerge.recipe.recipe import Recipe
from evomerge.scoring.slices import SuiteInfo
from evomerge.study.observer import Observer
from evomerge.study.run.folder import is_disk_full
from evomerge.types import SplitName

if TYPE_CHECKING:
    from evomerge.evaluator.evaluator import Evaluator

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Job(Protocol):
    """What takes a workbench. It goes to another process as it is."""

    @property
    def recipe(self) -> Recipe | None:
        """Of the model that it is about: who holds it already is asked first."""
        ...

    def run(self, bench: Evaluator, on_slice: Callable[[str], None]) -> Any: ...


EvalTask = Generator[Job, Any, T]
"""What yields jobs, is sent the result of each (or has its exception thrown in), and returns a `T`."""


@dataclass(frozen=True, eq=False)
class ScoreJob:
    """Score a recipe on a split, on the items that are `chosen` for each slice or on all; gives an `Evaluation`."""

    recipe: Recipe
    split: SplitName
    chosen: Mapping[str, frozenset[str]] | None = None

    def run(self, bench: Evaluator, on_slice: Callable[[str], None]) -> Any:
        return bench.evaluate(self.recipe, self.split, on_slice, self.chosen)


class Executor(Protocol):
    """Takes `hands` jobs at a time. `outline` is what it scores, `digests` what each slice's items are known by,
    `devices` where its models are."""

    hands: int

    @property
    def outline(self) -> SuiteInfo: ...

    @property
    def digests(self) -> Mapping[str, str]: ...

    @property
    def devices(self) -> str: ...

    def submit(self, job: Job) -> None: ...

    def result(self) -> tuple[Job, Any]:
        """The next job that ended, with what came of it; an exception is returned."""
        ...


class InProcess:
    """The model in this process. Closing it is not needed."""

    hands = 1

    def __init__(self, bench: Evaluator, observer: Observer) -> None:
        self._bench, self._observer = bench, observer
        self.outline, self.digests = bench.suite.info, bench.suite.items_digest()
        self.devices: str = bench.resident.devices

    def submit(self, job: Job) -> None:
        self._job = job

    def result(self) -> tuple[Job, Any]:
        return self._job, attempt(self._job, self._bench, self._observer.slice_started)


def attempt(job: Job, bench: Evaluator, on_slice: Callable[[str], None]) -> Any:
    """What comes of a job, or the exception: whatever it is, it is the candidate's failure. But a full disk is not."""
    try:
        with recognized():
            return job.run(bench, on_slice)
    except (TrialError, InputError) as error:
        return error
    except Exception as error:
        if is_disk_full(error):
            return error
        logger.exception("a candidate cannot be scored")
        return TrialError(f"{type(error).__name__}: {error}")


def drive(scorer: Executor, start: Callable[[], EvalTask[T] | None], at_once: int | None = None) -> Iterator[T]:
    """Run works, as many at a time as there are hands (or `at_once`), and yield what they return as they end.

    `start` gives the next work whenever one can begin, and None while there is none; the end is when none is running
    and there is none. What a work raises is raised here.
    """
    running: dict[Job, EvalTask[T]] = {}
    hands = scorer.hands if at_once is None else min(scorer.hands, at_once)

    def advance(work: EvalTask[T], step: Callable[[], Job]) -> Iterator[T]:
        try:
            job = step()
        except StopIteration as end:
            yield end.value
            return
        running[job] = work
        scorer.submit(job)

    while True:
        while len(running) < hands and (work := start()) is not None:
            yield from advance(work, partial(next, work))
        if not running:
            return
        job, result = scorer.result()
        work = running.pop(job)
        yield from advance(work, partial(work.throw if isinstance(result, Exception) else work.send, result))
