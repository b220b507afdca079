"""Reports of a study. The loop calls these; a live view, a test or a service overrides some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from evomerge.evaluator.progress import Progress
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial

StageName = Literal["references", "search", "best in full", "holdout"]
"""The stages of a study, in order. "best in full": pruned trials that seem to be among the best get their scores."""


class Observer(Progress):
    """Receives reports of a study. Every method may be overridden; none has to be."""

    def launched(
        self, run: str, trials: int | None, seconds: float | None, signs: Mapping[str, int], spent: float = 0.0
    ) -> None:
        """The search is about to start.

        Args:
            run: its name.
            trials: the total; None: no limit.
            seconds: the time that is left; None: no limit.
            signs: slice -> -1 where lower is better, else 1.
            spent: the seconds that earlier sessions spent.
        """

    def stage(self, name: StageName, done: int, total: int | None, last: str = "") -> None:
        """A stage of the study begins, or has come further.

        Args:
            name: of the stage.
            done: how many of its models or trials are done; in the search, all trials count, references too.
            total: of how many; None: no limit.
            last: the one that was done last, where it is not told by `trial_finished`.
        """

    def recorded(self, leaderboard: Leaderboard) -> None:
        """The search begins; `leaderboard` ranks the trials that have ended before, in earlier sessions, too."""

    def trial_started(self, trial: Trial) -> None:
        """A trial is being evaluated."""

    def trial_finished(self, trial: Trial, leaderboard: Leaderboard) -> None:
        """A trial was stored; `leaderboard` ranks all of them."""
