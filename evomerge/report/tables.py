"""Builds tables for people. Scores are in the direction of their metrics, each beside its floor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.numbers import number, span
from evomerge.report.shown import Cell, Column, Row, Sheet
from evomerge.scoring.gates import Gate, floor_decimals, interval
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import UNIFORM, Trial

if TYPE_CHECKING:
    from evomerge.examine.evaluate import Evaluated

_NAMES = {UNIFORM: "uniform average"}
INTERVALS = "95 % intervals"
PREDICTED = "~: predicted from a part of the items; a pruned trial cannot win"


def describe(trial: Trial) -> str:
    if trial.kind == "search":
        return f"{trial.name} ({trial.label})" if trial.label else trial.name
    return _NAMES.get(trial.label, trial.label)


# Parts that several tables have.


def directed(metric: str, sign: int) -> str:
    """The metric with an arrow in its good direction."""
    return f"{metric} {'↑' if sign > 0 else '↓'}".strip()


def limit(floor: float | None, sign: int, decimals: int | None = None) -> str:
    """Writes an oriented floor in the metric's direction: ``≥ 0.9000``."""
    return "none" if floor is None else f"{'≥' if sign > 0 else '≤'} {number(sign * floor, decimals)}"


def slice_columns(gates: Mapping[str, Gate], metrics: Mapping[str, str]) -> list[Column]:
    return [Column(name, directed(metrics.get(name, ""), gate.sign)) for name, gate in gates.items()]


def directions(signs: Iterable[int]) -> list[str]:
    """The line of a legend that says which way is good, where that is not always up."""
    return ["↓: lower is better, and counts negatively in the objective"] if any(sign < 0 for sign in signs) else []


def origins(leaderboard: Leaderboard, split: str = "") -> list[str]:
    """The line of a legend that says what relative floors are made of."""
    floors = [f"{n} {'≥' if g.sign > 0 else '≤'} {g.text}" for n, g in leaderboard.gates.items() if " " in g.text]
    return [f"floors{f' on the {split}' if split else ''}: {', '.join(floors)}"] if floors else []


def misses(trials: Iterable[tuple[Leaderboard, Trial]]) -> list[str]:
    """The line of a legend that explains ✗, where some trial misses a floor."""
    missing = [t for board, t in trials if any(not v.passed for v in board.verdicts(t))]
    by = "by its confidence bound" if any(t.bounds for t in missing) else ""
    return [f"✗: misses the floor {by}".rstrip()] if missing else []


def by_bounds(confidence: float | None) -> list[str]:
    """The line of a legend that says what is held to the floors, where that is not the score."""
    return [] if confidence is None else [f"floors are held against {100 * confidence:g} % confidence bounds"]


def mark(leaderboard: Leaderboard, trial: Trial) -> Cell:
    """Says whether a trial passes every floor; "pruned": its scores are predictions."""
    if trial.state != "complete":
        return Cell("pruned", style="yellow") if trial.state == "pruned" else Cell("failed", style="red")
    if not leaderboard.settled:
        return Cell("-")
    return Cell("pass", style="green") if leaderboard.outcome(trial).feasible else Cell("miss", style="red")


def scored(text: str, more: str, trial: Trial, missed: bool) -> Cell:
    """A score: marked where it is predicted, and where it misses its floor."""
    text = f"~ {text}" if trial.state == "pruned" else text
    return Cell(f"✗ {text}", more, "red") if missed else Cell(text, more)


# Tables.


def leaderboard_table(
    title: str,
    leaderboard: Leaderboard,
    rows: Sequence[tuple[str, Trial]],
    metrics: Mapping[str, str],
    legend: Sequence[str] = (),
) -> Sheet:
    """Builds a table: one row a trial, one column a slice, the floors on top. ✗ marks a score below its floor, ~ one
    that is predicted."""
    gates = leaderboard.gates
    columns = [*slice_columns(gates, metrics), Column("objective"), Column("floors", numbers=False)]
    decimals = leaderboard.decimals(trial for _, trial in rows)
    floors = [Cell(limit(gate.floor, gate.sign, decimals[name])) for name, gate in gates.items()]
    lines = [Row(["floor"], [*floors, Cell(""), Cell("")], "dim", ends=True)]
    for label, trial in rows:
        objective = scored(number(trial.objective), "", trial, missed=False)
        lines.append(Row([label], [*_cells(leaderboard, trial, decimals), objective, mark(leaderboard, trial)]))
    shown = [trial for _, trial in rows]
    predicted = [PREDICTED] if any(t.state == "pruned" for t in shown) else []
    marks = misses((leaderboard, t) for t in shown)
    notes = [*directions(g.sign for g in gates.values()), *marks, *predicted, *origins(leaderboard), *legend]
    return Sheet(title, ["model"], columns, lines, notes)


def _cells(leaderboard: Leaderboard, trial: Trial, decimals: Mapping[str, int]) -> list[Cell]:
    missed = {v.slice for v in leaderboard.verdicts(trial) if not v.passed}
    return [
        scored(number(gate.sign * trial.scores[name], decimals[name]), "", trial, name in missed)
        if name in trial.scores
        else Cell("-")
        for name, gate in leaderboard.gates.items()
    ]


def evaluated_table(result: Evaluated) -> Sheet:
    """Builds a table with one row a slice: the model's score, its interval, its floor."""
    columns = [
        Column("metric", numbers=False),
        Column("items"),
        Column("score"),
        Column("95 % interval"),
        Column("floor", numbers=False),
        Column("gate", numbers=False),
    ]
    rows = []
    for verdict in result.verdicts:
        slice_, score, gate = result.slices[verdict.slice], result.scores[verdict.slice], result.gates[verdict.slice]
        sign = slice_.sign
        decimals = floor_decimals(verdict.floor, sign, [verdict])
        origin = f" ({gate.text})" if " " in gate.text else ""
        passed = Cell("pass", style="green") if verdict.passed else Cell("miss", style="red")
        cells = [
            Cell(directed(slice_.metric, sign)),
            Cell("-" if slice_.is_measure else str(len(score.items))),
            Cell(number(sign * score.value, decimals)),
            Cell(span(interval(score, sign), decimals)),
            Cell(limit(verdict.floor, sign, decimals) + origin),
            passed if verdict.floor is not None else Cell("-"),
        ]
        rows.append(Row([verdict.slice], cells))
    legend = ["↓: lower is better"] if any(s.sign < 0 for s in result.slices.values()) else []
    legend += by_bounds(result.confidence)
    return Sheet(f"{result.model} on the {result.split} items", ["slice"], columns, rows, legend)


def eval_results_words(result: Evaluated) -> list[str]:
    """Says which results were written for the hub, and why others were not."""
    written = result.eval_results
    if written is None:
        return []
    lines = [f"wrote {file}" for file in written.files.values()]
    return [*lines, *(f"no result of {name} for the hub: {why}" for name, why in written.left_out.items())]
