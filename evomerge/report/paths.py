"""Shows the scores along a line as a table and as JSON."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from evomerge.examine.path import Barrier, Point, ScoredPath
from evomerge.report.data import finite
from evomerge.report.results import score
from evomerge.report.tables import number
from evomerge.scoring.gates import interval


def path_table(result: ScoredPath) -> Table:
    """Builds a table: one row a point; one column a slice, with 95 % intervals and the floor on top; the mean loss; the
    verdict."""
    table = Table(title=result.title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("t", justify="right")
    for name, slice_ in result.slices.items():
        table.add_column(f"{name}\n{slice_.metric}", justify="right")
    loss = dict(result.mean_loss)
    if loss:
        table.add_column("loss\nnats/token", justify="right")
    table.add_column("floors", justify="center")
    table.add_row("floor", *(_floor(result, name) for name in result.slices), style="dim", end_section=True)
    for point in result.points:
        cells = [_score(result, point, name) for name in result.slices]
        losses = [number(loss.get(point.t))] if loss else []
        table.add_row(f"{point.t:g}", *cells, *losses, _mark(point))
    return table


def path_summary(result: ScoredPath) -> str:
    """Says which points pass every floor, and the barriers, one line each."""
    return "\n".join([_passing(result), *_barriers(result)])


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
        "loss": finite(dict(result.mean_loss).get(point.t)),
        "reason": point.reason,
        "slices": {
            name: {
                "score": result.slices[name].show(slice_score.value),
                "stderr": slice_score.stderr,
                "interval": interval(slice_score, result.slices[name].sign),
                "loss": finite(slice_score.loss),
                "passed": passed[name],
            }
            for name, slice_score in point.scores.items()
        },
    }


def _barrier_data(barrier: Barrier | None) -> dict[str, float] | None:
    return None if barrier is None else {"height": barrier.height, "t": barrier.t}


def _floor(result: ScoredPath, name: str) -> str:
    gate = result.gates[name]
    if gate.floor is None:
        return "none"
    return f"{'≥' if gate.sign > 0 else '≤'} {gate.sign * gate.floor:.4f}"


def _score(result: ScoredPath, point: Point, name: str) -> Text:
    if name not in point.scores:
        return Text("-")
    slice_, slice_score = result.slices[name], point.scores[name]
    text = score(slice_.show(slice_score.value), interval(slice_score, slice_.sign))
    missed = any(v.slice == name and not v.passed for v in point.verdicts)
    return Text(f"✗ {text}", style="red") if missed else Text(text)


def _mark(point: Point) -> Text:
    if point.reason is not None:
        return Text("failed", style="red")
    if all(v.floor is None for v in point.verdicts):
        return Text("-")
    return Text("pass", style="green") if point.feasible else Text("miss", style="red")


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
