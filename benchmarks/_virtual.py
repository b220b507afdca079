"""A pool of workers in simulated time: an executor whose jobs cost nothing, and end when the clock says so.

The clock stands still while the executor works, goes on with the driver's own time (what the search does between two
calls of the executor), and jumps to the next end of a job when the driver waits for one.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from _free import FreeExecutor


class Clock:
    """Simulated seconds. `passed`: tells the real seconds that the driver is charged with; None: it costs none."""

    def __init__(self, passed: Callable[[], float] | None) -> None:
        self._passed = passed or (lambda: 0.0)
        self._now, self._since = 0.0, self._passed()
        self.driver = 0.0
        """Seconds of the driver so far."""

    def now(self) -> float:
        return self._now + self._passed() - self._since

    def stop(self) -> float:
        """The driver hands over to the executor: the time is taken."""
        passed = self._passed() - self._since
        self._now, self.driver = self._now + passed, self.driver + passed
        return self._now

    def go(self, until: float = 0.0) -> None:
        """The driver goes on, at `until` if that is later."""
        self._now, self._since = max(self._now, until), self._passed()


@dataclass(frozen=True)
class Times:
    """How long evaluations take.

    Attributes:
        recorded: seconds of true evaluations, drawn from with replacement; empty: log-normal ones.
        mean, sigma: of the log-normal distribution: the mean in seconds, and the deviation of the logarithm.
        stragglers, slow: the share of evaluations that take so many times as long.
        failures: the chance that a worker dies during a job.
        restart: seconds until it has loaded again.
        merge: the share of a whole evaluation's mean that each job costs before an item is scored.
    """

    recorded: Sequence[float] = ()
    mean: float = 60.0
    sigma: float = 0.5
    stragglers: float = 0.0
    slow: float = 5.0
    failures: float = 0.0
    restart: float = 60.0
    merge: float = 0.02

    def seconds(self, recipe: str, share: float) -> float:
        """Of a job on such a share of the items. A recipe takes the same whenever it is scored."""
        draw = random.Random(recipe)
        if self.recorded:
            whole = draw.choice(self.recorded)
        else:
            whole = self.mean * draw.lognormvariate(-(self.sigma**2) / 2, self.sigma)
        if draw.random() < self.stragglers:
            whole *= self.slow
        return self.merge * self.mean + (1 - self.merge) * whole * share

    def dies(self, recipe: str, attempt: int) -> float | None:
        """The share of a job after which its worker dies; None where it does not."""
        draw = random.Random(f"{recipe}/{attempt}")
        return draw.random() if draw.random() < self.failures else None


class VirtualPool(FreeExecutor):
    """`num_workers` workers. A job whose worker dies is run again, once, as `evaluator.pool` does."""

    def __init__(self, plan: Any, items: int, workers: int, times: Times, clock: Clock, right: Any) -> None:
        """`right`: (job, slice) -> the share of the items that are answered right."""
        super().__init__(plan, items)
        self._items = items
        self.num_workers, self.clock, self._times, self._right = workers, clock, times, right
        self._free = workers
        self._ends: list[tuple[float, int, Any, bool]] = []
        """When a job ends, a number, the job, whether its worker dies; or when a worker has loaded again, and None."""
        self._waiting: deque[Any] = deque()
        self._tries: Counter[Any] = Counter()
        self._number = 0
        self.busy: list[tuple[float, float]] = []
        """From when to when a worker was at work."""

    def answers(self, job: Any) -> Any:
        # Items are evenly hard, those of each slice between those of the others.
        names = list(self.info.slices)
        skills = {name: self._right(job, name) * self._items - at / len(names) for at, name in enumerate(names)}
        return lambda name, place, _: place < skills[name]

    def submit(self, job: Any) -> None:
        self.clock.stop()
        self._waiting.append(job)
        self._hand_out()
        self.clock.go()

    def result(self) -> tuple[Any, Any]:
        from evomerge.errors import TrialError

        self.clock.stop()
        while True:
            end, _, job, died = heapq.heappop(self._ends)
            self.clock.go(end)
            now = self.clock.stop()
            if died:
                self._add_end(end + self._times.restart, None)
            else:
                self._free += 1
            if died and self._tries[job] < 2:
                self._waiting.appendleft(job)
                job = None
            self._hand_out()
            if job is None:
                continue
            answer: Any = TrialError("the worker that scored it died twice")
            if not died:
                self._queue.append(job)
                _, answer = super().result()
            self.clock.go(now)
            return job, answer

    def _hand_out(self) -> None:
        begin = self.clock.now()
        while self._waiting and self._free:
            self._free -= 1
            job = self._waiting.popleft()
            whole = self._times.seconds(job.recipe.id, self._share(job))
            attempt = self._tries[job] = self._tries[job] + 1
            died = self._times.dies(job.recipe.id, attempt)
            end = begin + whole * (1.0 if died is None else died)
            self.busy.append((begin, end))
            self._add_end(end, job, died is not None)

    def _add_end(self, end: float, job: Any, died: bool = False) -> None:
        self._number += 1
        heapq.heappush(self._ends, (end, self._number, job, died))

    def _share(self, job: Any) -> float:
        from evomerge.evaluator.jobs import DocumentsJob

        if isinstance(job, DocumentsJob):
            return 0.0
        if job.items is None:
            return 1.0
        whole = sum(len(info.items) for info in self.info.slices.values())
        return sum(len(job.items.get(name, ())) for name in self.info.slices) / whole

    def utilisation(self, begin: float, end: float) -> float:
        """The share of the workers' time that they were at work."""
        worked = math.fsum(max(0.0, min(b, end) - max(a, begin)) for a, b in self.busy)
        return worked / (self.num_workers * (end - begin)) if end > begin else math.nan
