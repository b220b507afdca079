"""The screen of a search on a terminal, laid out for its width and height: no line wraps, and none is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.spinner import Spinner
from rich.text import Text

from evomerge.escape import printable
from evomerge.numbers import clock, number
from evomerge.report.chart import chart
from evomerge.report.shown import text
from evomerge.report.tables import describe, limit
from evomerge.report.tally import Tally
from evomerge.scoring.gates import Verdict, floor_decimals
from evomerge.study.observer import StageName
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial

STAGES: tuple[StageName, ...] = ("references", "search", "best in full", "holdout")
_OFTEN: tuple[StageName, ...] = ("references", "search", "holdout")
"""The stages that every study has."""

_LABEL, _BAR, _GAP = 12, 30, 2  # columns
_NAME = 10
"""A slice's name is not cut to fewer columns, as long as its numbers have room."""

_CHART, _CHART_MOST = 3, 12
"""Lines of the chart, at least and at most."""


@dataclass
class Shown:
    """What the screen shows of a study.

    Attributes:
        run: its name; empty before the launch.
        stages: name -> how many of its models or trials are done, and of how many.
        stage: the one that is at work.
        now, since: what is being done, and from when on.
        elapsed: gives the seconds of all sessions.
        search_note: gives what stands beside the search's bar: time used and time left.
        board: ranks the trials; None before one has ended.
    """

    run: str = ""
    stages: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    stage: str = ""
    now: str = ""
    since: float = 0.0
    elapsed: Callable[[], float] = lambda: 0.0
    search_note: Callable[[], str] = lambda: ""
    board: Leaderboard | None = None
    tally: Tally = field(default_factory=Tally)


class Panel:
    """Draws what is shown. Lines that have no room go, the most telling ones last."""

    def __init__(self, shown: Shown) -> None:
        self._shown, self._spinner = shown, Spinner("dots")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # The cursor stands below the last line.
        width, room = options.max_width, console.size.height - 1
        for line in self._lines(width, room, console.get_time(), options.ascii_only):
            line.truncate(width, overflow="crop" if options.ascii_only else "ellipsis")
            line.no_wrap, line.overflow = True, "crop"
            yield line

    def _lines(self, width: int, room: int, now: float, ascii_only: bool) -> list[Text]:
        shown = self._shown
        head = [self._title()] if shown.run else []
        head += self._bars(width, ascii_only) if shown.run else []
        if shown.now:
            frame = Text("*") if ascii_only else self._frame(now)
            head.append(frame.append(printable(f" {shown.now}  {clock(time.monotonic() - shown.since)}")))
        if shown.board is None or not shown.board.settled:
            return head[:room]
        counts, slices = list(self._counts()), list(self._slices(width))
        left = room - len(head) - len(counts)
        kept = _kept(slices, max(2, left - _CHART - 1))
        drawn = self._chart(width, min(_CHART_MOST, left - len(kept) - 1), ascii_only)
        return [*head, *counts, *drawn, *kept][:room]

    def _frame(self, now: float) -> Text:
        frame = self._spinner.render(now)
        return frame if isinstance(frame, Text) else Text("*")

    def _title(self) -> Text:
        shown = self._shown
        parts = [f"run {shown.run}  {clock(shown.elapsed())}"]
        generation = shown.tally.generation
        if generation is not None and generation < shown.tally.searched:
            parts.append(f"generation {generation}")
        return text("  ".join(parts), "bold")

    def _bars(self, width: int, ascii_only: bool) -> Iterator[Text]:
        stages = self._shown.stages
        notes = {name: self._shown.search_note() if name == "search" else "" for name in STAGES}
        counts = {name: _count(*stages[name]) if name in stages else "-" for name in STAGES}
        widest = max(map(len, counts.values()))
        bar = max(8, min(_BAR, width - _LABEL - widest - max(map(len, notes.values())) - 2 * _GAP - 1))
        for name in (name for name in STAGES if name in (*_OFTEN, *stages)):
            line = Text(f"{name:{_LABEL}} ", style="" if name in stages else "dim")
            done, total = stages.get(name, (0, None))
            line.append_text(_bar(done, total, bar, ascii_only) if total else Text(" " * bar))
            line.append(f" {counts[name]}" if not notes[name] else f" {counts[name]:{widest}}  {notes[name]}")
            yield line

    def _counts(self) -> Iterator[Text]:
        """What the search has come to: the part that passes, what a candidate costs, what was saved."""
        tally = self._shown.tally
        share = f" ({tally.feasible / tally.searched:.0%})" if tally.searched else ""
        yield Text(f"{'feasible':{_LABEL}} {tally.feasible} of {tally.searched} candidates{share}")
        total, merge, score = (tally.mean(phase) for phase in ("total", "materialize", "score"))
        if total is not None and merge is not None and score is not None:
            yield Text(f"{'seconds':{_LABEL}} {total:.2f} a candidate: merge {merge:.2f}, evaluate {score:.2f}")
        if tally.in_full:
            spared = f"{tally.spared:,} of {tally.in_full:,} saved ({tally.spared / tally.in_full:.0%})"
            yield Text(f"{'items':{_LABEL}} {spared}")

    def _chart(self, width: int, height: int, ascii_only: bool) -> list[Text]:
        board, tally = self._shown.board, self._shown.tally
        best = None if board is None else board.best()
        if best is None or height < _CHART:
            return [] if best is None else [self._best(best)]
        lines = chart(tally.best, min(width, 100), height, ascii_only)
        return [self._best(best), *(Text(line, style="green") for line in lines)]

    def _best(self, best: Trial) -> Text:
        front = len(self._shown.board.front()) if self._shown.board is not None else 0
        points = f"; the front has {front}" if front else ""
        return text(f"{'objective':{_LABEL}} {number(best.objective)}, the best that passes every floor{points}")

    def _slices(self, width: int) -> Iterator[Text]:
        """The slices of the best merge, or of the closest one, against their floors; a heading first."""
        board = self._shown.board
        leader = None if board is None else next(board.merges_in_order(), None)
        if board is None or leader is None:
            return
        verdicts, base = board.verdicts(leader), board.base
        passes = all(verdict.passed for verdict in verdicts)
        rows = [_row(board, verdict, base) for verdict in verdicts]
        heads = ["score", "floor", "above it", "base"]
        widths = [max(cell_len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
        names = [printable(verdict.slice) for verdict in verdicts]
        title = printable(f"{'best' if passes else 'closest'}: {describe(leader)}")
        most = max(_NAME, width - sum(widths) - _GAP * len(widths))
        wide = min(most, max(map(cell_len, (title, *names))))
        for name, cells, verdict in zip((title, *names), (heads, *rows), (None, *verdicts), strict=True):
            style = "bold" if verdict is None else "" if verdict.passed else "red"
            line = Text(name, style=style)
            line.truncate(wide, overflow="ellipsis", pad=True)
            for cell, room in zip(cells, widths, strict=True):
                line.append(" " * (_GAP + room - cell_len(cell)) + cell)
            yield line


def _count(done: int, total: int | None) -> str:
    return f"{done}/{total}" if total else str(done)


def _bar(done: int, total: int, width: int, ascii_only: bool) -> Text:
    filled = round(width * min(done, total) / total)
    full, empty = ("#", "-") if ascii_only else ("━", "─")
    return Text(full * filled, "green").append(empty * (width - filled), "dim")


def _row(board: Leaderboard, verdict: Verdict, base: Trial | None) -> list[str]:
    """Score, floor, what lies between them (in the good direction), and the base's score."""
    gate = board.gates[verdict.slice]
    decimals = floor_decimals(verdict.floor, gate.sign, [verdict])
    score = number(gate.sign * verdict.score, decimals)
    reference = number(gate.sign * base.scores[verdict.slice], decimals) if base and base.scores else "-"
    if verdict.floor is None:
        return [score, "none", "", reference]
    above = verdict.bound - verdict.floor
    mark = "" if verdict.passed else "✗ "
    distance = f"{'+' if above >= 0 else ''}{number(above, decimals)}"
    return [score, limit(verdict.floor, gate.sign, decimals), f"{mark}{distance}", reference]


def _kept(lines: Sequence[Text], room: int) -> list[Text]:
    """The heading and as many slices as have room, those that miss their floors first; the last line counts the
    others."""
    if len(lines) <= room:
        return list(lines)
    heading, rows = lines[0], lines[1:]
    missed = [line for line in rows if line.style == "red"]
    first = [*missed, *(line for line in rows if line.style != "red")][: max(0, room - 2)]
    left = len(rows) - len(first)
    n_missed = max(0, len(missed) - len(first))
    others = "all of them pass" if not n_missed else f"{n_missed} of them miss their floors"
    return [heading, *(line for line in rows if line in first), Text(f"and {left} more slices; {others}", style="dim")]
