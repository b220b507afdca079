"""Builds tables for people. Scores are in the direction of their metrics, each beside its floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from evomerge.scoring.gates import interval
from evomerge.study.after.status import Status, Unreadable
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import UNIFORM, Trial

if TYPE_CHECKING:
    from evomerge.examine.evaluate import Evaluated

_NAMES = {UNIFORM: "uniform average"}


def describe(trial: Trial) -> str:
    if trial.kind == "search":
        return f"{trial.name} ({trial.label})" if trial.label else trial.name
    return _NAMES.get(trial.label, trial.label)


def number(value: float | None, stderr: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f} ± {stderr:.4f}" if stderr is not None else f"{value:.4f}"


def span(interval: tuple[float, float] | None, decimals: int = 4) -> str:
    """Writes an interval of a score: ``0.944–0.996``."""
    if interval is None:
        return "-"
    low, high = (f"{end:.{decimals}f}" for end in interval)
    return f"{low} to {high}" if low.startswith("-") else f"{low}–{high}"


def leaderboard_table(
    title: str, leaderboard: Leaderboard, rows: Sequence[tuple[str, Trial]], metrics: Mapping[str, str]
) -> Table:
    """Builds a table: one row a trial, one column a slice, the floors on top. ✗ marks a score below its floor."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("model")
    for name in leaderboard.gates:
        table.add_column(f"{name}\n{metrics.get(name, '')}", justify="right")
    table.add_column("objective", justify="right")
    table.add_column("floors", justify="center")
    table.add_row(
        "floor", *(_floor(leaderboard, name) for name in leaderboard.gates), "", "", style="dim", end_section=True
    )
    for label, trial in rows:
        table.add_row(label, *_cells(leaderboard, trial), number(trial.objective), mark(leaderboard, trial))
    return table


def _floor(leaderboard: Leaderboard, name: str) -> str:
    gate = leaderboard.gates[name]
    if gate.floor is None:
        return "none"
    sign = "≥" if gate.sign > 0 else "≤"
    value = f"{sign} {gate.sign * gate.floor:.4f}"
    return f"{value}\n({gate.text})" if " " in gate.text else value


def _cells(leaderboard: Leaderboard, trial: Trial) -> list[Text]:
    missed = {v.slice for v in leaderboard.verdicts(trial) if not v.passed}
    cells = []
    for name, gate in leaderboard.gates.items():
        if name not in trial.scores:
            cells.append(Text("-"))
            continue
        text = number(gate.sign * trial.scores[name])
        cells.append(Text(f"✗ {text}", style="red") if name in missed else Text(text))
    return cells


def mark(leaderboard: Leaderboard, trial: Trial) -> Text:
    """Says whether a trial passes every floor; "pruned": its scores are predictions."""
    if trial.state != "complete":
        return Text("pruned", style="yellow") if trial.state == "pruned" else Text("failed", style="red")
    if not leaderboard.settled:
        return Text("-")
    return Text("pass", style="green") if leaderboard.outcome(trial).feasible else Text("miss", style="red")


def status_table(state: Status, top: int = 10) -> Table:
    """Builds a table of a run's references and its best trials by search scores, or of its front."""
    leaderboard, front = state.search, state.search.front()
    rows = [(describe(t), t) for t in leaderboard.trials if t.kind == "reference" and t.state != "running"]
    best = front or [t for t in leaderboard.ranked() if t.kind == "search"][:top]
    rows += [(describe(t), t) for t in best if t.kind == "search"]
    metrics = {name: info["metric"] for name, info in state.slices.items()}
    title = "Scores on the search split" + (f"; the front has {len(front)} of them" if front else "")
    return leaderboard_table(title, leaderboard, rows, metrics)


def runs_table(states: Sequence[Status | Unreadable]) -> Table:
    table = Table(header_style="bold")
    for column in ("run", "state", "trials", "best feasible", "winner"):
        table.add_column(column)
    for state in states:
        table.add_row(state.folder.name, *_run_cells(state))
    return table


def _run_cells(state: Status | Unreadable) -> tuple[str, str, str, str]:
    if not isinstance(state, Status):
        return f"unreadable: {state.problem}", "", "", ""
    best = state.search.best()
    return (
        "finished" if state.finished else "unfinished",
        f"{state.done}/{state.budget.get('trials') or '-'}",
        f"{number(best.objective)} ({best.name})" if best else "none",
        state.winner.name if state.winner else ("none" if state.finished else "-"),
    )


def evaluated_table(result: Evaluated) -> Table:
    title = f"{result.model} on the {result.split} items"
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in ("slice", "metric", "items", "score", "95 % interval", "floor", "gate"):
        table.add_column(column, justify="left" if column in ("slice", "metric", "gate") else "right")
    for verdict in result.verdicts:
        slice_, score = result.slices[verdict.slice], result.scores[verdict.slice]
        sign = slice_.sign
        floor_text = result.gates[verdict.slice].text
        floor = "none" if verdict.floor is None else f"{sign * verdict.floor:.4f}"
        floor += f" ({floor_text})" if " " in floor_text else ""
        gate = Text("pass", style="green") if verdict.passed else Text("miss", style="red")
        cells = (slice_.metric, str(len(score.items)), number(sign * score.value), span(interval(score, sign)), floor)
        table.add_row(verdict.slice, *cells, gate if verdict.floor is not None else Text("-"))
    return table
