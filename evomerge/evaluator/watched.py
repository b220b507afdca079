"""An executor over models whose files are watched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.identity import check_unchanged
from evomerge.evaluator.executor import Executor
from evomerge.evaluator.jobs import Job
from evomerge.scoring.slices import SuiteInfo


class WatchedExecutor:
    """Passes jobs on to another executor, and no result back once a source has changed: a candidate that was merged
    meanwhile may be of two models, and it must not be known which.

    Everything that a study writes of a candidate follows from a result, so that nothing is written either.
    """

    def __init__(self, executor: Executor, checkpoints: Iterable[Checkpoint], mend: str) -> None:
        """`checkpoints`: as they were opened before the executor was made. `mend`: what the user can do."""
        self._executor, self._checkpoints, self._mend = executor, list(checkpoints), mend

    @property
    def num_workers(self) -> int:
        return self._executor.num_workers

    @property
    def info(self) -> SuiteInfo:
        return self._executor.info

    @property
    def digests(self) -> Mapping[str, str]:
        return self._executor.digests

    @property
    def devices(self) -> str:
        return self._executor.devices

    def submit(self, job: Job) -> None:
        self._executor.submit(job)

    def result(self) -> tuple[Job, Any]:
        """The next job that ended. StoppedError where a file has changed since its checkpoint was opened."""
        try:
            ended = self._executor.result()
        except Exception:
            self._check()  # a worker that met the changed file is no fault of its own
            raise
        self._check()
        return ended

    def _check(self) -> None:
        check_unchanged(
            self._checkpoints, "while the search was using it; all that was scored before is kept", self._mend
        )
