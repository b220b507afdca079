"""Shows a running study on stderr: a live panel on a terminal, one line a trial elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.spinner import Spinner
from rich.text import Text

from evomerge.report.tables import describe, leaderboard_table, number
from evomerge.study.observer import Observer
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial


class Clock:
    """Estimates the remaining time, by the mean of the trials of this session and by the budget of time."""

    def __init__(self, trials: int | None, seconds: float | None) -> None:
        self.trials, self.seconds = trials, seconds
        self._started = time.monotonic()
        self._finished = 0

    def tick(self) -> None:
        self._finished += 1

    def left(self, done: int) -> str:
        if not self._finished:
            return "?"
        elapsed = time.monotonic() - self._started
        limits = [] if self.trials is None else [elapsed / self._finished * max(0, self.trials - done)]
        limits += [] if self.seconds is None else [max(0.0, self.seconds - elapsed)]
        left = min(limits, default=0.0)
        return f"{int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}"


class LineView(Observer):
    """Prints one line for each event; for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._clock = Clock(0, None)
        self._signs: Mapping[str, int] = {}
        self._message, self._printed_at = "", 0.0
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def say(self, text: str) -> None:
        if self._closed:
            return
        try:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        except OSError:
            # The reader of stderr has left, or its terminal was closed; the study goes on.
            self._closed = True

    def phase(self, message: str) -> None:
        self.say(f"{message} ...")

    def note(self, message: str) -> None:
        self.say(message)

    def progress(self, message: str, done: float) -> None:
        now = time.monotonic()
        if message != self._message and (now - self._printed_at > 1.0 or done >= 1.0):
            self._message, self._printed_at = message, now
            self.say(f"{message} ({done:.0%})")

    def warn(self, message: str) -> None:
        self.say(f"warning: {message}")

    def launched(self, run: str, trials: int | None, seconds: float | None, signs: Mapping[str, int]) -> None:
        self._clock, self._signs = Clock(trials, seconds), signs
        self.say(f"run {run}: {trials or 'any number of'} trials on {', '.join(signs)}")

    def trial_finished(self, trial: Trial, leaderboard: Leaderboard) -> None:
        self._clock.tick()
        done = leaderboard.n_finished
        best = leaderboard.best()
        top = f"best feasible {number(best.objective)} ({describe(best)})" if best else "none feasible yet"
        if not leaderboard.settled:
            top = "floors are not settled yet"
        count = f"[{done}/{self._clock.trials or '-'}]"
        self.say(f"{count} {self._line(trial, leaderboard)} | {top} | left {self._clock.left(done)}")

    def holdout_scored(self, name: str, done: int, total: int) -> None:
        self.say(f"holdout [{done}/{total}] {name}")

    def _line(self, trial: Trial, leaderboard: Leaderboard) -> str:
        if trial.state == "failed":
            return f"{describe(trial)} failed: {trial.reason}"
        scores = " ".join(f"{name} {self._signs.get(name, 1) * value:.4f}" for name, value in trial.scores.items())
        missed = [v.slice for v in leaderboard.verdicts(trial) if not v.passed]
        floors = f"misses {', '.join(missed)}" if missed else ("passes" if leaderboard.settled else "")
        predicted = f" by {trial.evaluated} of {trial.items} items" if trial.state == "pruned" else ""
        return f"{describe(trial)}: {scores} {floors}".rstrip() + predicted


class LiveView(LineView):
    """Redraws a panel in place: progress, the current trial, the best merges against the floors."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        count, note = TextColumn("{task.completed:.0f}/{task.total:.0f}"), TextColumn("{task.fields[note]}")
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn(), note)
        self._task = self._bar.add_task("search", total=1, visible=False, note="")
        self._now = Spinner("dots", Text(""))
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._table: Group | None = None
        self._what = "scoring"

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def _draw(self, message: str | None = None) -> None:
        if message is not None:
            self._now = Spinner("dots", Text(f" {message}"))
        self._live.update(Group(self._bar, *([self._table] if self._table else []), self._now))

    def phase(self, message: str) -> None:
        self._draw(message)

    def launched(self, run: str, trials: int | None, seconds: float | None, signs: Mapping[str, int]) -> None:
        self._clock, self._signs = Clock(trials, seconds), signs
        self._bar.update(self._task, description=f"run {run}", total=trials, visible=True)
        self._draw()

    def progress(self, message: str, done: float) -> None:
        self._bar.update(self._task, description="", total=100, completed=100 * done, visible=done < 1)
        self._draw(message)

    def trial_started(self, trial: Trial) -> None:
        self._what = f"scoring {describe(trial)}"
        self._draw(self._what)

    def slice_started(self, name: str) -> None:
        self._draw(f"{self._what}: {name}")

    def trial_finished(self, trial: Trial, leaderboard: Leaderboard) -> None:
        self._clock.tick()
        done = leaderboard.n_finished
        self._bar.update(self._task, completed=done, note=f"left {self._clock.left(done)}")
        if trial.state == "failed":
            self.warn(f"{describe(trial)} failed: {trial.reason}")
        if leaderboard.settled:
            rows = [(describe(t), t) for t in (leaderboard.base, *leaderboard.merges(3)) if t is not None]
            self._table = Group(leaderboard_table("best so far (search split)", leaderboard, rows, {}))
        self._draw()

    def holdout_scored(self, name: str, done: int, total: int) -> None:
        self._what = "holdout split"
        self._draw(f"holdout split: {name} ({done}/{total})")


def view(console: Console) -> LineView:
    """Returns the live panel on a terminal, else the view with one line an event."""
    return LiveView(console) if console.is_terminal else LineView(console)
