"""Interactive figures of a search's trials (plotly). Scores are in the metric's own direction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.errors import InputError, suggestion
from evomerge.escape import plotly
from evomerge.report.tables import describe
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.trial import Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SYMBOLS = {"reference": "diamond", "search": "circle"}
_FEASIBLE, _INFEASIBLE, _LINE = "#1f77b4", "#c7c7c7", "#2ca02c"


def objective_figure(leaderboard: Leaderboard, winner: Trial | None = None) -> Figure:
    """The objective of each trial, and the best feasible one so far."""
    graph = _plotly()
    figure, best = graph.Figure(), leaderboard.improvements()
    _add_points(figure, leaderboard, lambda trial: trial.number, lambda trial: trial.objective)
    if best:
        last = max(trial.number for trial in leaderboard.trials)
        figure.add_scatter(
            x=[*(trial.number for trial in best), last],
            y=[*(trial.objective for trial in best), best[-1].objective],
            mode="lines",
            line={"shape": "hv", "color": _LINE},
            name="best that passes every floor",
        )
    _mark(figure, winner, None if winner is None else (winner.number, _of(leaderboard, winner).objective))
    return figure.update_layout(xaxis_title="trial", yaxis_title="objective")


def slices_figure(leaderboard: Leaderboard, x: str, y: str, winner: Trial | None = None) -> Figure:
    """One slice's score against another's, with the floors of both. InputError for a slice that is none."""
    for name in (x, y):
        if name not in leaderboard.gates:
            raise InputError(f"there is no slice {name!r}", suggestion(name, leaderboard.gates))
    figure = _plotly().Figure()
    signs = {name: leaderboard.gates[name].sign for name in (x, y)}

    def score(name: str, trial: Trial) -> float | None:
        return signs[name] * trial.scores[name] if name in trial.scores else None

    _add_points(figure, leaderboard, lambda trial: score(x, trial), lambda trial: score(y, trial))
    for name, add in ((x, figure.add_vline), (y, figure.add_hline)):
        floor = leaderboard.gates[name].floor
        if floor is not None:
            add(signs[name] * floor, line_dash="dash", line_color="gray")
    if winner is not None:
        found = _of(leaderboard, winner)
        _mark(figure, winner, (score(x, found), score(y, found)))
    return figure.update_layout(xaxis_title=plotly(x), yaxis_title=plotly(y))


def parallel_figure(leaderboard: Leaderboard, keys: Sequence[str] | None = None) -> Figure:
    """The genes of all searched trials as parallel coordinates, coloured by the objective. `keys`: of the genes to
    show; default: the twelve that vary with the objective most."""
    graph = _plotly()
    trials = [trial for trial in _ranked(leaderboard) if trial.kind == "search"]
    genes = sorted({key for trial in trials for key in trial.genome})
    for key in keys or ():
        if key not in genes:
            raise InputError(f"there is no gene {key!r}", suggestion(key, genes))
    shown = list(keys) if keys is not None else _telling(trials, genes)[:12]
    values = [trial.objective for trial in trials]
    axes = [_axis(plotly(key), [trial.genome.get(key) for trial in trials]) for key in shown]
    axes += [
        _axis(plotly(name), [gate.sign * trial.scores[name] if name in trial.scores else None for trial in trials])
        for name, gate in leaderboard.gates.items()
    ]
    line = {"color": values, "colorscale": "Viridis", "showscale": True}
    return graph.Figure(graph.Parcoords(dimensions=axes, line=line))


def weights_figure(genome: Mapping[str, Any], gene: str = "weight") -> Figure:
    """The values of one gene as a heat map: sources (rows) by layers and modules (columns). InputError where the genome
    has no such gene."""
    graph = _plotly()
    parts = {key: value for key, value in genome.items() if key.partition("[")[0] == gene}
    numbers = {_place(key): value for key, value in parts.items() if isinstance(value, int | float)}
    if not numbers:
        raise InputError(f"there is no gene {gene!r} with numbers", "name one of the space's")
    rows = list(dict.fromkeys(place[0] if place else gene for place in numbers))
    columns = list(dict.fromkeys(", ".join(place[1:]) or "all" for place in numbers))
    cells = {(place[0] if place else gene, ", ".join(place[1:]) or "all"): v for place, v in numbers.items()}
    grid = [[cells.get((row, column)) for column in columns] for row in rows]
    names = [plotly(row) for row in rows], [plotly(column) for column in columns]
    figure = graph.Figure(graph.Heatmap(z=grid, y=names[0], x=names[1], colorscale="Viridis"))
    return figure.update_layout(title=plotly(gene))


def _place(key: str) -> tuple[str, ...]:
    """The values of a gene's axes in a dimension's key, such as `weight[math,0:8]`."""
    inside = key.partition("[")[2].removesuffix("]")
    return tuple(inside.split(",")) if inside else ()


def _plotly() -> Any:
    import plotly.graph_objects as graph  # takes a moment

    return graph


def _ranked(leaderboard: Leaderboard) -> list[Trial]:
    return [trial for trial in leaderboard.trials if trial.ranked]


def _of(leaderboard: Leaderboard, trial: Trial) -> Trial:
    """The trial with the scores that it has in the leaderboard."""
    return next((t for t in leaderboard.trials if t.number == trial.number), trial)


def _add_points(figure: Figure, leaderboard: Leaderboard, x: Any, y: Any) -> None:
    """One trace for each kind of trial: references, trials that pass every floor, others; predicted ones are open."""
    for kind, passes, name in (
        ("reference", None, "base, sources, average"),
        ("search", True, "passes every floor"),
        ("search", False, "misses a floor"),
    ):
        trials = [t for t in _ranked(leaderboard) if t.kind == kind]
        if passes is not None:
            trials = [t for t in trials if leaderboard.outcome(t).feasible == passes]
        if trials:
            symbols = [_SYMBOLS[kind] + ("-open" if t.state == "pruned" else "") for t in trials]
            color = _INFEASIBLE if passes is False else "#d62728" if passes is None else _FEASIBLE
            figure.add_scatter(
                x=[x(t) for t in trials],
                y=[y(t) for t in trials],
                mode="markers",
                name=name,
                text=[plotly(describe(t)) for t in trials],
                marker={"symbol": symbols, "color": color},
            )


def _mark(figure: Figure, winner: Trial | None, at: tuple[Any, Any] | None) -> None:
    if winner is not None and at is not None:
        marker = {"symbol": "star", "size": 14, "color": _LINE}
        figure.add_scatter(
            x=[at[0]], y=[at[1]], mode="markers", name="winner", text=[plotly(winner.name)], marker=marker
        )


def _telling(trials: Sequence[Trial], keys: Iterable[str]) -> list[str]:
    """The numeric genes, those first whose values go with the objective most (correlation), then those with choices."""
    from statistics import StatisticsError, correlation

    def share(key: str) -> float:
        pairs = [(t.genome.get(key), t.objective) for t in trials]
        known = [(v, o) for v, o in pairs if isinstance(v, int | float) and o is not None]
        try:
            return abs(correlation([v for v, _ in known], [o for _, o in known]))
        except StatisticsError:
            return -1.0

    return sorted(keys, key=lambda key: (-share(key), key))


def _axis(label: str, values: Sequence[Any]) -> dict[str, Any]:
    """One axis of parallel coordinates; choices are numbered."""
    if all(isinstance(value, int | float) or value is None for value in values):
        return {"label": label, "values": list(values)}
    choices = sorted({str(value) for value in values})
    at = {choice: i for i, choice in enumerate(choices)}
    return {
        "label": label,
        "values": [at[str(value)] for value in values],
        "tickvals": list(at.values()),
        "ticktext": [plotly(choice) for choice in choices],
    }
