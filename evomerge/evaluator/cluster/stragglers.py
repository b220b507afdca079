"""Second tries of jobs that hold up a generation: the first answer counts, and the second has to agree with it."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Hashable, Mapping
from typing import Any

from evomerge.evaluator.jobs import Job

_KNOWN, _FEW = 20, 3
"""The last jobs of a kind that say how long one takes, and how few of them say nothing yet."""
_LATE, _LEAST = 2.0, 5.0
"""How many times as long as its kind a job takes that is late, and how many seconds at least."""


class Stragglers:
    """Knows which jobs run twice, and what was answered first."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=_KNOWN))
        self._twice: dict[Job, Any] = {}  # the first answer, once it is there

    def learn(self, job: Job, seconds: float) -> None:
        """Takes in how long a job took."""
        self._seconds[_kind(job)].append(seconds)

    def is_late(self, job: Job, since: float) -> bool:
        """Whether a job that runs since then (of `time.monotonic`), and only once, takes much longer than its kind."""
        known = self._seconds[_kind(job)]
        if job in self._twice or len(known) < _FEW:
            return False
        return time.monotonic() - since > max(_LEAST, _LATE * statistics.median(known))

    def repeat(self, job: Job) -> None:
        """The job runs a second time from now on."""
        self._twice[job] = None

    def is_answered(self, job: Job) -> bool:
        return self._twice.get(job) is not None

    def first(self, job: Job, result: Any) -> bool:
        """Whether this is the first answer to a job."""
        if self.is_answered(job):
            return False
        if job in self._twice:
            self._twice[job] = result
        return True

    def agrees(self, job: Job, result: Any) -> bool:
        """Whether a second answer is about the same weights as the first, by their digest."""
        first, second = (getattr(answer, "digest", None) for answer in (self._twice[job], result))
        return first is None or second is None or first == second


def _kind(job: Job) -> Hashable:
    """Jobs of a kind take alike: they ask for as many items."""
    items = getattr(job, "items", None)
    if isinstance(items, Mapping):
        return type(job), getattr(job, "split", None), sum(map(len, items.values()))
    return type(job), getattr(job, "split", None), None if items is None else len(items)
