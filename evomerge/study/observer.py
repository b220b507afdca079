"""Reports of a study. The loop calls these; a live view, a test or a service overrides some."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.evaluator.progress import Progress
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial


class Observer(Progress):
    """Receives reports of a study. Every method may be overridden; none has to be."""

    def launched(self, run: str, trials: int | None, seconds: float | None, signs: Mapping[str, int]) -> None:
        """The search is about to start.

        Args:
            run: its name.
            trials: the total; None: no limit.
            seconds: the time that is left; None: no limit.
            signs: slice -> -1 where lower is better, else 1.
        """

    def trial_started(self, trial: Trial) -> None:
        """A trial is being evaluated."""

    def trial_finished(self, trial: Trial, leaderboard: Leaderboard) -> None:
        """A trial was stored; `leaderboard` ranks all of them."""

    def holdout_scored(self, name: str, done: int, total: int) -> None:
        """One of the models that are re-scored on the holdout split is done."""
