"""What a search has come to so far, counted as its trials end: no count grows with their number."""

from __future__ import annotations

from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial


class Tally:
    """Counts the trials of a search, once its floors are settled.

    Attributes:
        best: the best feasible objective after each trial; None while there is none.
        searched, feasible: how many candidates have scores, and how many of them pass every floor.
        scored, in_full: on how many items the candidates were scored, and how many all of theirs are.
        generation: of the latest candidate; None where that is unknown.
    """

    def __init__(self) -> None:
        self.best: list[float | None] = []
        self.searched = self.feasible = self.scored = self.in_full = 0
        self.generation: int | None = None
        self._seconds = {"materialize": 0.0, "score": 0.0, "total": 0.0}
        self._timed = 0
        self._seen: set[int] = set()

    def add(self, trial: Trial, leaderboard: Leaderboard) -> None:
        """Counts a trial that has ended, and before the first one those that ended earlier."""
        if not leaderboard.settled:
            return
        if not self._seen:
            self.add_all(leaderboard)
        self._add(trial, leaderboard)

    def add_all(self, leaderboard: Leaderboard) -> None:
        """Counts all trials that have ended."""
        for trial in leaderboard.trials if leaderboard.settled else ():
            self._add(trial, leaderboard)

    @property
    def spared(self) -> int:
        """How many items the candidates were not scored on."""
        return self.in_full - self.scored

    def mean(self, phase: str) -> float | None:
        """The mean seconds of a candidate in a phase."""
        return self._seconds[phase] / self._timed if self._timed else None

    def _add(self, trial: Trial, leaderboard: Leaderboard) -> None:
        if trial.state == "running" or trial.number in self._seen:
            return
        self._seen.add(trial.number)
        before = self.best[-1] if self.best else None
        objective = trial.objective if leaderboard.passes(trial) else None
        self.best.append(max((value for value in (before, objective) if value is not None), default=None))
        if trial.kind != "search":
            return
        self.generation = trial.generation if trial.generation is not None else self.generation
        if not trial.ranked:
            return
        self.searched += 1
        self.feasible += leaderboard.outcome(trial).feasible
        self.scored += trial.evaluated
        self.in_full += trial.items
        if trial.duplicate_of is None:
            self._timed += 1
            for phase in self._seconds:
                self._seconds[phase] += trial.seconds.get(phase, 0.0)
