"""What a study tells whoever watches it. The loop calls these; a live view, a test or a service overrides some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evomerge.study.run.leaderboard import Leaderboard
    from evomerge.study.run.trial import Trial


class Observer:
    """Every method may be overridden; none has to be."""

    def phase(self, message: str) -> None:
        """The study does something that takes a while, such as loading the sources."""

    def note(self, message: str) -> None:
        """A fact about the study that is worth keeping in sight."""

    def progress(self, message: str, done: float) -> None:
        """The share `done` of a phase whose length is known."""

    def launched(self, run: str, trials: int | None, seconds: float | None, signs: Mapping[str, int]) -> None:
        """The search is about to start. `trials` is the total, `seconds` what is left of the time; `signs` maps a
        slice to -1 where lower is better."""

    def trial_started(self, trial: Trial) -> None:
        """A trial is being evaluated."""

    def slice_started(self, name: str) -> None:
        """One slice of the model in hand is being scored."""

    def trial_finished(self, trial: Trial, leaderboard: Leaderboard) -> None:
        """A trial was stored; `leaderboard` ranks all of them."""

    def holdout_scored(self, name: str, done: int, total: int) -> None:
        """One of the models that are re-scored on the holdout split is done."""

    def warn(self, message: str) -> None:
        """Something that the user should know and that stops nothing."""
