"""Tables for people, and the same facts as JSON: scores in the metrics' own direction, each held to its floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from evomerge.scoring.gates import Verdict
from evomerge.study.standing import Standing
from evomerge.study.status import Status, Unreadable
from evomerge.study.trial import UNIFORM, Trial

if TYPE_CHECKING:
    from evomerge.study.evaluate import Evaluated
    from evomerge.study.search import Result

_NAMES = {UNIFORM: "uniform average"}


def describe(trial: Trial) -> str:
    return _NAMES.get(trial.label, trial.label) or trial.name


def number(value: float | None, stderr: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f} ± {stderr:.4f}" if stderr is not None else f"{value:.4f}"


def standing_table(
    title: str, standing: Standing, rows: Sequence[tuple[str, Trial]], metrics: Mapping[str, str], spread: bool = True
) -> Table:
    """One row a trial, one column a slice, the floors on top; a score below its floor is marked with ✗."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.add_column("model")
    for name in standing.gates:
        table.add_column(f"{name}\n{metrics.get(name, '')}", justify="right")
    table.add_column("objective", justify="right")
    table.add_column("floors", justify="center")
    table.add_row("floor", *(_floor(standing, name) for name in standing.gates), "", "", style="dim", end_section=True)
    for label, trial in rows:
        table.add_row(label, *_cells(standing, trial, spread), number(trial.objective), _mark(standing, trial))
    return table


def _floor(standing: Standing, name: str) -> str:
    gate = standing.gates[name]
    if gate.floor is None:
        return "none"
    sign = "≥" if gate.sign > 0 else "≤"
    value = f"{sign} {gate.sign * gate.floor:.4f}"
    return f"{value}\n({gate.text})" if " " in gate.text else value


def _cells(standing: Standing, trial: Trial, spread: bool) -> list[Text]:
    missed = {v.slice for v in standing.verdicts(trial) if not v.passed}
    cells = []
    for name, gate in standing.gates.items():
        if name not in trial.scores:
            cells.append(Text("-"))
            continue
        text = number(gate.sign * trial.scores[name], trial.stderr.get(name) if spread else None)
        cells.append(Text(f"✗ {text}", style="red") if name in missed else Text(text))
    return cells


def _mark(standing: Standing, trial: Trial) -> Text:
    if trial.state != "complete":
        return Text("failed", style="red")
    if not standing.settled:
        return Text("-")
    return Text("pass", style="green") if standing.outcome(trial).feasible else Text("miss", style="red")


def result_table(result: Result) -> Table:
    """The end of a search on the holdout split: parents, uniform average, the other candidates that were re-scored,
    and the winner (or, with none, the closest)."""
    standing = result.holdout
    last = result.winner or closest(standing)
    others = [t for t in standing.trials if last is None or t.number != last.number]
    rows = [(describe(t), t) for t in others]
    if last is not None:
        rows.append((f"{'winner' if result.winner else 'closest'}: {describe(last)}", last))
    metrics = {name: piece.metric for name, piece in result.slices.items()}
    title = "Scores on the holdout split, which the search never saw"
    if result.confidence is not None:
        title += f"; floors are held against {result.confidence:.0%} lower bounds"
    return standing_table(title, standing, rows, metrics)


def better_parent(result: Result) -> Trial | None:
    """The base or source that passes every floor and scores better than the winner."""
    parents = [t for t in result.holdout.trials if t.is_parent and result.holdout.outcome(t).feasible]
    best = max(parents, key=lambda t: t.objective or 0.0, default=None)
    if best is None or result.winner is None or best.objective is None or result.winner.objective is None:
        return None
    return best if best.objective > result.winner.objective else None


def closest(standing: Standing) -> Trial | None:
    """The best-ranked merge, feasible or not."""
    return next(iter(standing.merges()), None)


def missed_floors(standing: Standing, trial: Trial) -> str:
    """The floors that a trial missed, in words."""
    return "; ".join(_missed(standing, trial, v) for v in standing.verdicts(trial) if not v.passed)


def _missed(standing: Standing, trial: Trial, verdict: Verdict) -> str:
    sign, name = standing.gates[verdict.slice].sign, verdict.slice
    floor = sign * verdict.floor if verdict.floor is not None else float("nan")
    bound = f" (confidence bound {sign * trial.bounds[name]:.4f})" if name in trial.bounds else ""
    return f"{name} {sign * trial.scores[name]:.4f}{bound}, floor {floor:.4f}"


def status_table(state: Status, top: int = 10) -> Table:
    """A run's references and its best trials by search scores."""
    standing = state.search
    rows = [(describe(t), t) for t in standing.trials if t.kind == "reference" and t.state != "running"]
    rows += [(describe(t), t) for t in standing.ranked() if t.kind == "search"][:top]
    metrics = {name: about["metric"] for name, about in state.slices.items()}
    return standing_table("Scores on the search split", standing, rows, metrics, spread=False)


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
    for column in ("slice", "metric", "items", "score", "floor", "gate"):
        table.add_column(column, justify="right" if column in ("items", "score", "floor") else "left")
    for verdict in result.verdicts:
        piece, score = result.slices[verdict.slice], result.scores[verdict.slice]
        sign = piece.sign
        told = result.gates[verdict.slice].text
        floor = "none" if verdict.floor is None else f"{sign * verdict.floor:.4f}"
        floor += f" ({told})" if " " in told else ""
        gate = Text("pass", style="green") if verdict.passed else Text("miss", style="red")
        cells = (piece.metric, str(len(score.items)), number(sign * score.value, score.stderr), floor)
        table.add_row(verdict.slice, *cells, gate if verdict.floor is not None else Text("-"))
    return table


# JSON


def trial_data(standing: Standing, trial: Trial) -> dict[str, Any]:
    signs = {name: gate.sign for name, gate in standing.gates.items()}
    outcome = standing.outcome(trial)
    return {
        "trial": trial.number,
        "label": trial.name,
        "state": trial.state,
        "scores": {name: signs.get(name, 1) * value for name, value in trial.scores.items()},
        "stderr": dict(trial.stderr),
        "objective": trial.objective,
        "feasible": outcome.feasible if standing.settled and not outcome.failed else None,
        "missed": [v.slice for v in standing.verdicts(trial) if not v.passed],
        "genome": trial.genome,
        "recipe_id": trial.recipe_id,
        "digest": trial.digest,
        "reason": trial.reason,
    }


def standing_data(standing: Standing) -> dict[str, Any]:
    floors = {n: None if g.floor is None else g.sign * g.floor for n, g in standing.gates.items()}
    return {"floors": floors, "trials": [trial_data(standing, t) for t in standing.trials]}


def result_data(result: Result) -> dict[str, Any]:
    winner = trial_data(result.holdout, result.winner) if result.winner else None
    closest_trial, parent = closest(result.holdout), better_parent(result)
    return {
        "run": str(result.folder.path),
        "winner": winner,
        "closest": trial_data(result.holdout, closest_trial) if closest_trial and not winner else None,
        "better_parent": parent.label if parent else None,
        "holdout": standing_data(result.holdout),
        "trials": len(result.search.trials),
        "confidence": result.confidence,
    }


def status_data(state: Status | Unreadable) -> dict[str, Any]:
    if not isinstance(state, Status):
        return {"run": str(state.folder.path), "problem": state.problem}
    return {
        "run": str(state.folder.path),
        "finished": state.finished,
        "budget": dict(state.budget),
        "winner": state.winner.number if state.winner else None,
        "search": standing_data(state.search),
        "holdout": standing_data(state.release.standing) if state.release else None,
    }


def run_data(state: Status | Unreadable) -> dict[str, Any]:
    """One run of the list of runs."""
    if not isinstance(state, Status):
        return status_data(state)
    best = state.search.best()
    return {
        "run": str(state.folder.path),
        "finished": state.finished,
        "trials": state.done,
        "budget": dict(state.budget),
        "best": best.number if best else None,
        "best_objective": best.objective if best else None,
        "winner": state.winner.number if state.winner else None,
    }


def evaluated_data(result: Evaluated) -> dict[str, Any]:
    def shown(verdict: Verdict) -> dict[str, Any]:
        sign, score = result.slices[verdict.slice].sign, result.scores[verdict.slice]
        floor = None if verdict.floor is None else sign * verdict.floor
        return {"score": sign * score.value, "stderr": score.stderr, "items": len(score.items), "floor": floor,
                "passed": verdict.passed}  # fmt: skip

    return {
        "model": result.model,
        "split": result.split,
        "digest": result.digest,
        "objective": result.objective,
        "feasible": result.feasible,
        "slices": {v.slice: shown(v) for v in result.verdicts},
        "references": {
            model: {name: result.slices[name].sign * s.value for name, s in scores.items()}
            for model, scores in result.references.items()
        },
    }
