"""Shows a running study on stderr: a live panel on a terminal, one plain line an event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from evomerge.interrupts import deferred, seen_through
from evomerge.numbers import clock, number
from evomerge.report.panel import Panel, Shown
from evomerge.report.shown import console as plain_console
from evomerge.report.shown import text
from evomerge.report.tables import describe
from evomerge.study.observer import Observer, StageName
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial


class Clock:
    """Measures this session, and estimates what is left of the search by its mean time a trial and by the budget."""

    def __init__(self, trials: int | None, seconds: float | None, spent: float = 0.0) -> None:
        """Args:
        trials: the budget's total; None: no limit.
        seconds: the time that is left; None: no limit.
        spent: the seconds that earlier sessions spent.
        """
        self.trials, self.seconds, self.spent = trials, seconds, spent
        self._started = self._first = self._last = time.monotonic()
        self._finished = 0
        self._ended: float | None = None

    def begin_search(self) -> None:
        """The references are scored: from now on trials are timed."""
        self._first = self._last = time.monotonic()
        self._finished = 0

    def end_search(self) -> None:
        """What follows counts against no budget."""
        self._ended = self._ended or time.monotonic()

    def tick(self) -> None:
        """A trial ended."""
        self._finished += 1
        self._last = time.monotonic()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def left(self, done: int, known: float | None = None) -> str:
        """The time that is left when so many trials are done; "?" where that is unknown. `known`: the seconds of a
        trial by earlier sessions, as long as none has ended in this one."""
        now, limits = time.monotonic(), []
        if self.trials is not None and self._finished:
            mean = (self._last - self._first) / self._finished
            limits.append(mean * max(0, self.trials - done) - (now - self._last))
        elif self.trials is not None and known is not None:
            limits.append(known * max(0, self.trials - done))
        if self.seconds is not None:
            limits.append(self.seconds - self.elapsed)
        left = min(limits, default=-1.0)
        over = self.trials is not None and done >= self.trials
        return clock(max(0.0, left)) if left >= 0 or over else "?"

    def budget(self) -> str:
        """How much of the budget of time is used: ``0:03:10 of 2:00:00``; empty without one."""
        if self.seconds is None:
            return ""
        total, used = self.spent + self.seconds, (self._ended or time.monotonic()) - self._started
        return f"{clock(min(total, self.spent + used))} of {clock(total)}"


class LineView(Observer):
    """Prints one line for each event, without control characters; for logs and pipes."""

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

    def say(self, line: str) -> None:
        if self._closed:
            return
        try:
            with seen_through():
                self.console.print(text(line), soft_wrap=True)
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

    def launched(
        self, run: str, trials: int | None, seconds: float | None, signs: Mapping[str, int], spent: float = 0.0
    ) -> None:
        self._clock, self._signs = Clock(trials, seconds, spent), signs
        time_budget = self._clock.budget()
        within = f", {time_budget} of evaluation are used" if time_budget else ""
        self.say(f"run {run}: {trials or 'any number of'} trials on {', '.join(signs)}{within}")

    def stage(self, name: StageName, done: int, total: int | None, last: str = "") -> None:
        self._time(name)
        if last:
            self.say(f"{name} [{done}/{total}] {last}")

    def _time(self, stage: StageName) -> None:
        if stage == "search":
            self._clock.begin_search()
        elif stage != "references":
            self._clock.end_search()

    def trial_finished(self, trial: Trial, leaderboard: Leaderboard) -> None:
        self._clock.tick()
        done = leaderboard.n_finished
        best = leaderboard.best()
        top = f"best feasible {number(best.objective)} ({describe(best)})" if best else "none feasible yet"
        if not leaderboard.settled:
            top = "floors are not settled yet"
        count = f"[{done}/{self._clock.trials or '-'}]"
        self.say(f"{count} {self._line(trial, leaderboard)} | {top} | left {self._clock.left(done)}")

    def _line(self, trial: Trial, leaderboard: Leaderboard) -> str:
        if trial.state == "failed":
            return f"{describe(trial)} failed: {trial.reason}"
        scores = " ".join(f"{name} {number(self._signs.get(name, 1) * v)}" for name, v in trial.scores.items())
        missed = [v.slice for v in leaderboard.verdicts(trial) if not v.passed]
        floors = f"misses {', '.join(missed)}" if missed else ("passes" if leaderboard.settled else "")
        predicted = f" as predicted by {trial.evaluated} of {trial.items} items" if trial.state == "pruned" else ""
        return f"{describe(trial)}: {scores} {floors}".rstrip() + predicted


class LiveView(LineView):
    """Redraws a screen in place (`report.panel`): the stages with their counts, what is being done and for how long,
    what the search has come to, its best merge against the floors. A thread redraws it, so that the clock goes on while
    a candidate is being scored."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._shown = Shown(since=time.monotonic())
        self._what = "scoring"
        self._screen = Panel(self._shown)
        self._live = Live(console=console, get_renderable=lambda: self._screen, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        try:
            with deferred():
                self._live.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        """Gives the terminal back as it was: an interruption waits for that."""
        with deferred(), suppress(OSError):
            self._live.stop()

    def phase(self, message: str) -> None:
        self._begin(message)

    def progress(self, message: str, done: float) -> None:
        self._shown.now = f"{message} ({done:.0%})"
        self._redraw()

    def launched(
        self, run: str, trials: int | None, seconds: float | None, signs: Mapping[str, int], spent: float = 0.0
    ) -> None:
        self._clock, self._signs, self._shown.run = Clock(trials, seconds, spent), signs, run
        self._shown.elapsed = lambda: self._clock.spent + self._clock.elapsed
        self._shown.search_note = self._search_note
        self._redraw()

    def stage(self, name: StageName, done: int, total: int | None, last: str = "") -> None:
        self._time(name)
        if name in ("best in full", "holdout"):
            self._what = "scoring on the holdout items" if name == "holdout" else "scoring in full"
            self._begin(self._what)
        self._shown.stages = {**self._shown.stages, name: (done, total)}
        self._shown.stage = name
        self._redraw()

    def recorded(self, leaderboard: Leaderboard) -> None:
        self._shown.tally.add_all(leaderboard)
        self._shown.board = leaderboard
        self._redraw()

    def trial_started(self, trial: Trial) -> None:
        self._what = f"scoring {describe(trial)}"
        self._begin(self._what)

    def slice_started(self, name: str) -> None:
        self._shown.now = f"{self._what}: {name}"

    def trial_finished(self, trial: Trial, leaderboard: Leaderboard) -> None:
        self._clock.tick()
        if trial.kind == "search":
            self._shown.stages = {**self._shown.stages, "search": (leaderboard.n_finished, self._clock.trials)}
            self._shown.stage = "search"
        if trial.state == "failed":
            self.warn(f"{describe(trial)} failed: {trial.reason}")
        self._shown.tally.add(trial, leaderboard)
        self._shown.board = leaderboard
        self._redraw()

    def _begin(self, what: str) -> None:
        """Something else is being done from now on."""
        self._shown.now, self._shown.since = what, time.monotonic()
        self._redraw()

    def _redraw(self) -> None:
        with suppress(OSError), seen_through():  # the terminal was closed
            self._live.refresh()

    def _search_note(self) -> str:
        """What stands beside the search: the time that is used, and what is left of it."""
        done, _ = self._shown.stages.get("search", (0, None))
        left = self._clock.left(done, self._shown.tally.mean("total"))
        at_work = self._shown.stage == "search" and left != "?"
        return ", ".join(filter(None, (self._clock.budget(), f"about {left} left" if at_work else "")))


def view(console: Console | None = None) -> LineView:
    """Returns the live panel on a terminal that can move its cursor, else the view with one line an event; on stderr,
    unless a console is given."""
    console = console or plain_console(sys.stderr)
    return LiveView(console) if console.is_terminal and not console.is_dumb_terminal else LineView(console)
