"""Shows the scores along a line as a table and as JSON."""

from __future__ import annotations

from typing import Any

from evomerge.examine.path import Barrier, Point, ScoredPath
from evomerge.numbers import behind, number, shortest
from evomerge.report.shown import Cell, Column, Row, Sheet
from evomerge.report.tables import INTERVALS, by_bounds, limit, slice_columns
from evomerge.scoring.gates import floor_decimals, interval


def path_table(result: ScoredPath) -> Sheet:
    """Builds a table: one row a point; one column a slice, with 95 % intervals and the floor on top; the mean loss; the
    verdict."""
    columns = slice_columns(result.gates, {name: slice_.metric for name, slice_ in result.slices.items()})
    loss = dict(result.mean_loss)
    columns += [Column("loss", "nats/token ↓")] if loss else []
    columns.append(Column("floors", numbers=False))
    decimals = {name: _decimals(result, name) for name in result.slices}
    gates = (result.gates[name] for name in result.slices)
    floors = [Cell(limit(gate.floor, gate.sign, decimals[gate.slice])) for gate in gates]
    rows = [Row(["floor"], [*floors, *([Cell("")] if loss else []), Cell("")], "dim", ends=True)]
    for point in result.points:
        cells = [_score(result, point, name, decimals[name]) for name in result.slices]
        losses = [Cell(number(loss.get(point.t)))] if loss else []
        rows.append(Row([f"{point.t:g}"], [*cells, *losses, _mark(point)]))
    down = loss or any(gate.sign < 0 for gate in result.gates.values())
    legend = ["↓: lower is better"] if down else []
    legend += by_bounds(result.confidence)
    return Sheet(result.title, ["t"], columns, rows, legend, more=INTERVALS)


def path_summary(result: ScoredPath) -> list[str]:
    """Says which points pass every floor, and the barriers, a line each."""
    return [_passing(result), *_barriers(result)]


def path_data(result: ScoredPath) -> dict[str, Any]:
    """Returns all results; scores are in the direction of their metrics."""
    losses = {name: result.barrier(curve) for name, curve in result.losses.items()}
    return {
        "start": result.start,
        "end": result.end,
        "split": result.split,
        "complete": result.complete,
        "feasible": result.feasible,
        "passing": [point.t for point in result.points if point.feasible],
        "slices": {
            name: {
                "metric": slice_.metric,
                "higher_is_better": slice_.sign > 0,
                "items": result.counts[name],
                "floor": None if (floor := result.gates[name].floor) is None else slice_.show(floor),
            }
            for name, slice_ in result.slices.items()
        },
        "points": [_point_data(result, point) for point in result.points],
        "barrier": _barrier_data(result.barrier(result.mean_loss)),
        "barriers": {name: _barrier_data(barrier) for name, barrier in losses.items()},
        "confidence": result.confidence,
    }


def _point_data(result: ScoredPath, point: Point) -> dict[str, Any]:
    passed = {v.slice: v.passed for v in point.verdicts}
    return {
        "t": point.t,
        "digest": point.digest or None,
        "objective": point.objective,
        "feasible": point.feasible,
        "loss": dict(result.mean_loss).get(point.t),
        "reason": point.reason,
        "slices": {
            name: {
                "score": result.slices[name].show(slice_score.value),
                "stderr": slice_score.stderr,
                "interval": interval(slice_score, result.slices[name].sign),
                "loss": slice_score.loss,
                "passed": passed[name],
            }
            for name, slice_score in point.scores.items()
        },
    }


def _barrier_data(barrier: Barrier | None) -> dict[str, float] | None:
    return None if barrier is None else {"height": barrier.height, "t": barrier.t}


def _decimals(result: ScoredPath, name: str) -> int:
    gate, verdicts = result.gates[name], [v for p in result.points for v in p.verdicts if v.slice == name]
    least = shortest(result.slices[name].show(p.scores[name].value) for p in result.points if name in p.scores)
    return floor_decimals(gate.floor, gate.sign, verdicts, least)


def _score(result: ScoredPath, point: Point, name: str, decimals: int) -> Cell:
    if name not in point.scores:
        return Cell("-")
    slice_, slice_score = result.slices[name], point.scores[name]
    value = slice_.show(slice_score.value)
    missed = any(v.slice == name and not v.passed for v in point.verdicts)
    after = behind(value, interval(slice_score, slice_.sign), decimals)
    return Cell(f"{'✗ ' if missed else ''}{number(value, decimals)}", after, "red" if missed else "")


def _mark(point: Point) -> Cell:
    if point.reason is not None:
        return Cell("failed", style="red")
    if all(v.floor is None for v in point.verdicts):
        return Cell("-")
    return Cell("pass", style="green") if point.feasible else Cell("miss", style="red")


def _passing(result: ScoredPath) -> str:
    if all(gate.floor is None for gate in result.gates.values()):
        return "no slice has a floor"
    passing = [f"{point.t:g}" for point in result.points if point.feasible]
    return f"passes every floor at t = {', '.join(passing)}" if passing else "no point passes every floor"


def _barriers(result: ScoredPath) -> list[str]:
    curves = dict(result.losses)
    if len(curves) > 1:
        curves["the mean"] = result.mean_loss
    return [f"loss barrier of {name}: {_barrier_text(result.barrier(curve))}" for name, curve in curves.items()]


def _barrier_text(barrier: Barrier | None) -> str:
    if barrier is None:
        return "unknown, an end has no finite loss"
    return f"{barrier.height:.4f} nats per token at t = {barrier.t:g}" if barrier.height else "none"
