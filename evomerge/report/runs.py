"""Shows runs that go on, stopped or are finished: all of a folder, or one."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.numbers import clock, number
from evomerge.report.shown import Cell, Column, Row, Sheet
from evomerge.report.tables import describe, leaderboard_table
from evomerge.study.after.status import Status, Unreadable
from evomerge.study.run.trial import Trial

_PREDICTED = 5
"""How many pruned trials are shown: the best by their predicted scores."""


def status_words(state: Status) -> str:
    """Says on one line whether the run goes on, how far it is, and what to do next."""
    failed = sum(trial.state == "failed" for trial in state.search.trials)
    parts = [f"{how_far(state)} trials"]
    seconds = state.budget.get("seconds")
    if seconds:
        parts.append(f"{clock(state.seconds)} of {clock(seconds)} of evaluation")
    if state.budget.get("items"):
        parts.append(f"{state.items:,} of {state.budget['items']:,} items")
    parts += [f"{failed} failed"] if failed else []
    if state.finished:
        parts.append(f"winner: {describe(state.winner)}" if state.winner else "no winner")
    elif state.state == "stopped":
        parts.append(f"go on with `evomerge resume {state.folder.handle}`")
    return f"run {state.folder.name}: {_state(state)}; {', '.join(parts)}"


def status_tables(state: Status, top: int = 10) -> list[Sheet]:
    """Builds the table of a run's references and best trials by search scores (or of its front), and, where it has gone
    on since, the one of the trials with holdout scores. Trials that were scored in full come first."""
    leaderboard, front = state.search, state.search.front()
    metrics = {name: str(info["metric"]) for name, info in state.slices.items()}
    shown = [t for t in leaderboard.trials if t.kind == "reference" and t.state != "running"]
    ended = [t for t in leaderboard.ranked() if t.kind == "search"]
    measured = front or [t for t in ended if t.state == "complete"][:top]
    shown += [t for t in measured if t.kind == "search"]
    shown += _winner(state, shown)
    shown += [t for t in ended if t.state == "pruned"][:_PREDICTED]
    count = f"; the front has {len(front)} of them" if front else ""
    tables = [leaderboard_table(f"Scores on the search split{count}", leaderboard, _labelled(state, shown), metrics)]
    if state.release is not None and not state.finished:
        board = state.release.leaderboard
        since = f"after {state.release.after} trials; the search has gone on since"
        title = f"Scores on the holdout split, which name the winner, {since}"
        tables.append(leaderboard_table(title, board, _labelled(state, board.trials), metrics))
    return tables


def _winner(state: Status, shown: Sequence[Trial]) -> list[Trial]:
    """The winner with its search scores, where it is not among the shown trials."""
    if state.winner is None or state.winner.number in {t.number for t in shown}:
        return []
    return [t for t in state.search.trials if t.number == state.winner.number]


def _labelled(state: Status, trials: Sequence[Trial]) -> list[tuple[str, Trial]]:
    best = state.winner.number if state.winner else None
    return [(f"{'winner: ' if t.number == best else ''}{describe(t)}", t) for t in trials]


def runs_table(states: Sequence[Status | Unreadable]) -> Sheet:
    """Builds a table with one row a run."""
    names = ("state", "trials", "best feasible", "winner")
    columns = [Column(name, numbers=False) for name in names]
    rows = [Row([state.folder.name], _run_cells(state)) for state in states]
    stopped = any(isinstance(state, Status) and state.state == "stopped" for state in states)
    legend = ["stopped: go on with `evomerge resume RUN`"] if stopped else []
    return Sheet("", ["run"], columns, rows, legend)


def _run_cells(state: Status | Unreadable) -> list[Cell]:
    if not isinstance(state, Status):
        return [Cell(f"unreadable: {state.problem}", style="red"), *[Cell("")] * 3]
    best = state.search.best()
    style = {"running": "green", "stopped": "yellow"}.get(state.state, "")
    return [
        Cell(_state(state), style=style),
        Cell(how_far(state)),
        Cell(f"{number(best.objective)} ({best.name})" if best else "none"),
        Cell(describe(state.winner) if state.winner else ("none" if state.finished else "-")),
    ]


def how_far(state: Status) -> str:
    """Counts a run's finished trials, of its budget where that is known."""
    trials = state.budget.get("trials")
    return f"{state.done} of {trials}" if trials else str(state.done)


def _state(state: Status) -> str:
    return f"running, {state.driver}" if state.driver else state.state
