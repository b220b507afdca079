"""The charts of a page, as plotly's data and layout. Colours are names of the page's own (`--ink`), which follow the
reader's light or dark mode; what a point is, its shape says, too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.escape import plotly, shortened
from evomerge.numbers import number, span
from evomerge.report.page.trials import KINDS

SYMBOLS = {
    "reference": ("square-open", "--ink"),
    "feasible": ("circle", "--c1"),
    "infeasible": ("x", "--c2"),
    "open": ("circle-open", "--c1"),
    "predicted": ("diamond-open", "--c4"),
    "failed": ("triangle-down-open", "--bad"),
}
"""What a trial is -> the shape and the colour of its point."""

LINES = (("--c1", "solid", "circle"), ("--c2", "dash", "diamond"))
"""Colour, dash and shape of each run that is compared."""

PANELS, _ROW, _LONGEST = 6, 24, 24
"""Slices that have a panel; pixels of a row; characters of a name on an axis."""


def plain(text: object) -> str:
    """A text that plotly takes for no markup, and on one line."""
    return plotly(shortened(text, 160))


def tick(text: object) -> str:
    """A name on an axis."""
    return plotly(shortened(text, _LONGEST))


def _layout(height: int, **more: Any) -> dict[str, Any]:
    return {"height": height, "margin": {"l": 10, "r": 12, "t": 10, "b": 10}, **more}


def _axis(title: str = "", **more: Any) -> dict[str, Any]:
    return {"title": {"text": plain(title)} if title else None, "automargin": True, "fixedrange": True, **more}


# The merge against other models


def models_chart(models: Sequence[Mapping[str, Any]], gates: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], int]:
    """One panel a slice: a row for each model, with its interval, and the floor as a line. Also the height."""
    panels = [gate for gate in gates[:PANELS] if any(gate["slice"] in m["scores"] for m in models)]
    rows = list(range(len(models)))
    data: list[dict[str, Any]] = []
    tall = _ROW * len(rows) + 60
    height = max(1, len(panels)) * tall + 60
    layout: dict[str, Any] = _layout(height, shapes=[], annotations=[], showlegend=False)
    layout["margin"]["t"] = 30
    for at, gate in enumerate(panels):
        key = "" if at == 0 else str(at + 1)
        top = 1 - at / len(panels)
        domain = [top - 1 / len(panels) * (tall - 52) / tall, top]
        layout[f"yaxis{key}"] = _axis(
            domain=domain, tickvals=rows, ticktext=[tick(m["label"]) for m in models], range=[len(rows) - 0.5, -0.5],
            zeroline=False,
        )  # fmt: skip
        layout[f"xaxis{key}"] = _axis(anchor=f"y{key}", zeroline=False)
        data += [trace for trace in _panel(models, gate, key) if trace["x"]]
        text = f"<b>{tick(gate['slice'])}</b>  {tick(gate['metric'])}, {_better(gate)} is better"
        layout["annotations"].append(
            {"text": text, "x": 0, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom",
             "showarrow": False, "font": {"size": 13}}
        )  # fmt: skip
        split = "holdout" if any(m["split"] == "holdout" for m in models) else "search"
        floor = (gate[split] or gate["search"] or {}).get("floor")
        if floor is not None and math.isfinite(floor):
            layout["shapes"].append(_line(f"x{key}", f"y{key} domain", floor, floor, 0, 1))
    return {"data": data, "layout": layout}, height


def _panel(models: Sequence[Mapping[str, Any]], gate: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A trace for each kind of point: passes or misses, on the holdout or the search split."""
    traces = []
    for split, hollow in (("holdout", ""), ("search", "-open")):
        for passed in (True, False, None):
            chosen = []
            for row, model in enumerate(models):
                score = model["scores"].get(gate["slice"])
                if score is not None and model["split"] == split and score["passed"] is passed:
                    chosen.append((row, model, score))
            ends = [(s["score"], *(s["interval"] or (s["score"], s["score"]))) for _, _, s in chosen]
            above, below = [max(0.0, high - at) for at, _, high in ends], [max(0.0, at - low) for at, low, _ in ends]
            symbol, colour = ("x", "--c2") if passed is False else ("circle", "--c1" if passed else "--soft")
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [s["score"] for _, _, s in chosen],
                    "y": [row for row, _, _ in chosen],
                    "xaxis": f"x{key}",
                    "yaxis": f"y{key}",
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": above,
                        "arrayminus": below,
                        "color": colour,
                        "thickness": 1.5,
                        "width": 4,
                    },
                    "marker": {"symbol": f"{symbol}{hollow}", "size": 10, "color": colour},
                    "hoverinfo": "text",
                    "text": [_hover(m, gate, s, split) for _, m, s in chosen],
                }
            )  # fmt: skip
    return traces


def _hover(model: Mapping[str, Any], gate: Mapping[str, Any], score: Mapping[str, Any], split: str) -> str:
    between = f" ({span(score['interval'])})" if score["interval"] else ""
    says = {True: "passes its floor", False: "misses its floor", None: "no floor"}[score["passed"]]
    return f"{plain(model['label'])}<br>{plain(gate['slice'])} {number(score['score'])}{between}<br>{split}: {says}"


def _line(x: str, y: str, x0: Any, x1: Any, y0: Any, y1: Any) -> dict[str, Any]:
    return {"type": "line", "xref": x, "yref": y, "x0": x0, "x1": x1, "y0": y0, "y1": y1,
            "line": {"color": "--bad", "dash": "dash", "width": 1.5}}  # fmt: skip


# Trials


def trials_chart(data: Mapping[str, Any], winner: int | None) -> dict[str, Any]:
    """The objective of each trial, and the best so far."""
    trials = [t for t in data["trials"] if _known(t["objective"])]
    traces = [_points(kind, [t for t in trials if t["kind"] == kind]) for kind in KINDS if kind != "failed"]
    failed = [t for t in data["trials"] if t["kind"] == "failed"]
    if failed:
        bottom = min((t["objective"] for t in trials), default=0.0)
        traces.append(_points("failed", [{**t, "objective": bottom} for t in failed], "failed"))
    best, last = data["best_so_far"], max((t["trial"] for t in data["trials"]), default=0)
    if best:
        steps = [*best, {"trial": max(last, best[-1]["trial"]), "objective": best[-1]["objective"]}]
        traces.append(
            {"type": "scatter", "mode": "lines", "name": "best so far", "x": [b["trial"] for b in steps],
             "y": [b["objective"] for b in steps], "line": {"shape": "hv", "color": "--ink", "width": 2},
             "hoverinfo": "skip"}
        )  # fmt: skip
    traces += _winner([t for t in trials if t["trial"] == winner], "trial", "objective")
    return {
        "data": [trace for trace in traces if trace["x"]],
        "layout": _layout(
            420,
            xaxis=_axis("trial", rangemode="tozero", zeroline=False),
            yaxis=_axis("objective (search items)", zeroline=False),
            legend={"orientation": "h", "y": -0.25, "x": 0},
        ),
    }


def _points(kind: str, trials: Sequence[Mapping[str, Any]], says: str = "") -> dict[str, Any]:
    symbol, colour = SYMBOLS[kind]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": KINDS[kind],
        "x": [t["trial"] for t in trials],
        "y": [t["objective"] for t in trials],
        "marker": {"symbol": symbol, "color": colour, "size": 8},
        "hoverinfo": "text",
        "text": [f"{plain(t['label'])}: {says or number(t['objective'])}<br>{KINDS[kind]}" for t in trials],
    }


def _winner(found: Sequence[Mapping[str, Any]], x: str, y: str) -> list[dict[str, Any]]:
    marker = {"symbol": "circle-open", "size": 18, "color": "--ink", "line": {"width": 2}}
    return [
        {"type": "scatter", "mode": "markers", "name": "winner", "x": [t[x]], "y": [t[y]], "marker": marker,
         "hoverinfo": "skip"}
        for t in found
    ]  # fmt: skip


def pairs_chart(data: Mapping[str, Any], gates: Sequence[Mapping[str, Any]], winner: int | None) -> dict[str, Any]:
    """What `page.js` needs to draw any two slices against each other."""
    trials = [t for t in data["trials"] if t["scores"] and t["kind"] != "failed"]
    return {
        "pairs": {
            "slices": [
                {
                    "name": tick(g["slice"]),
                    "axis": f"{plain(g['slice'])} ({plain(g['metric'])}, {_better(g)} is better)",
                    "sign": 1 if g["higher_is_better"] else -1,
                    "floor": _finite(data["floors"].get(g["slice"])),
                    "scores": [_rounded(t["scores"].get(g["slice"])) for t in trials],
                }
                for g in gates
            ],
            "names": [plain(t["label"]) for t in trials],
            "numbers": [t["trial"] for t in trials],
            "kinds": [t["kind"] for t in trials],
            "looks": {kind: {"name": KINDS[kind], "symbol": s, "color": c} for kind, (s, c) in SYMBOLS.items()},
            "winner": winner,
        },
        "layout": _layout(460, legend={"orientation": "h", "y": -0.22, "x": 0}),
    }  # fmt: skip


# Settings and genes


def heat_map(grid: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """Layers down, sources and modules across. Also the height."""
    values = [[_rounded(v) for v in row] for row in grid["values"]]
    columns = [tick(column_name(c)) for c in grid["columns"]]
    known = [v for row in values for v in row if v is not None]
    most = max((abs(v) for v in known), default=1.0) or 1.0
    below = any(v < 0 for v in known)
    scale = [[0, "--fill"], [1, "--c1"]]
    height = min(900, 120 + (24 if len(values) > 12 else 36) * len(values))
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": values,
        "x": list(range(len(columns))),
        "y": list(range(len(values))),
        "zmin": -most if below else 0,
        "zmax": most,
        "colorscale": [[0, "--c2"], [0.5, "--fill"], [1, "--c1"]] if below else scale,
        "xgap": 2 if len(columns) <= 24 else 0,
        "ygap": 2 if len(values) <= 40 else 0,
        "colorbar": {"thickness": 12, "len": 1.0, "outlinewidth": 0},
        "hoverinfo": "text",
        "text": [
            [f"{plain(layer)}, {plain(column_name(c))}: {number(v)}" for c, v in zip(grid["columns"], row, strict=True)]
            for layer, row in zip(grid["layers"], values, strict=True)
        ],
    }
    if len(known) <= 120 and len(columns) <= 8:
        trace["texttemplate"] = "%{z:.3~g}"
    across, down = _marks(columns, 24), _marks([tick(n) for n in grid["layers"]], 40)
    angle = 0 if len(columns) <= 4 else -40 if len(columns) <= 24 else -90
    layout = _layout(
        height,
        xaxis=_axis(**across, tickangle=angle, zeroline=False, showgrid=False),
        yaxis=_axis(**down, autorange="reversed", zeroline=False, showgrid=False),
    )
    return {"data": [trace], "layout": layout}, height


def _marks(names: Sequence[str], most: int) -> dict[str, Any]:
    """The marks of an axis: of many names some, at even steps."""
    shown = range(0, len(names), -(-len(names) // most) or 1)
    return {"tickvals": list(shown), "ticktext": [names[at] for at in shown]}


def column_name(column: Mapping[str, Any]) -> str:
    """A column of a heat map: its source and module."""
    return ", ".join(filter(None, (column["source"], column["module"]))) or "the whole merge"


def importance_chart(effects: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], int]:
    """The effect of each gene with its interval. Also the height."""
    height, rows = 80 + _ROW * len(effects), list(range(len(effects)))
    clear = [e["interval"][0] > 0 or e["interval"][1] < 0 for e in effects]
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [effects[i]["effect"] for i in rows if clear[i] is is_clear],
            "y": [i for i in rows if clear[i] is is_clear],
            "error_x": {
                "type": "data",
                "array": [effects[i]["interval"][1] - effects[i]["effect"] for i in rows if clear[i] is is_clear],
                "color": colour,
                "thickness": 1.5,
                "width": 4,
            },
            "marker": {"symbol": symbol, "color": colour, "size": 10},
            "hoverinfo": "text",
            "text": [f"{plain(effects[i]['gene'])}: {effects[i]['effect']:+.4f}" for i in rows if clear[i] is is_clear],
        }
        for is_clear, name, symbol, colour in (
            (True, "the interval has no 0", "circle", "--c1"),
            (False, "may be nothing", "circle-open", "--soft"),
        )
    ]
    layout = _layout(
        height + 40,
        xaxis=_axis("change of the objective", zeroline=True),
        yaxis=_axis(tickvals=rows, ticktext=[tick(e["gene"]) for e in effects], range=[len(rows) - 0.5, -0.5],
                    zeroline=False),
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    return {"data": [trace for trace in data if trace["x"]], "layout": layout}, height + 40


# Two runs


def runs_chart(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The objective of each trial of several runs, and the best so far of each."""
    traces: list[dict[str, Any]] = []
    for (name, data), (colour, dash, symbol) in zip(runs, LINES, strict=False):
        searched = [t for t in data["trials"] if _known(t["objective"]) and t["kind"] in ("feasible", "infeasible")]
        for is_feasible in (True, False):
            chosen = [t for t in searched if (t["kind"] == "feasible") is is_feasible]
            says = KINDS["feasible" if is_feasible else "infeasible"]
            marker = {"symbol": symbol if is_feasible else f"{symbol}-open", "color": colour, "size": 7}
            traces.append(
                {"type": "scatter", "mode": "markers", "name": f"{tick(name)}: {says}", "marker": marker,
                 "x": [t["trial"] for t in chosen], "y": [t["objective"] for t in chosen], "hoverinfo": "text",
                 "text": [f"{plain(name)}, {plain(t['label'])}: {number(t['objective'])}" for t in chosen]}
            )  # fmt: skip
        best = data["best_so_far"]
        if best:
            last = max(t["trial"] for t in data["trials"])
            steps = [*best, {"trial": last, "objective": best[-1]["objective"]}]
            traces.append(
                {"type": "scatter", "mode": "lines", "name": f"{tick(name)}: best so far", "hoverinfo": "skip",
                 "x": [b["trial"] for b in steps], "y": [b["objective"] for b in steps],
                 "line": {"shape": "hv", "color": colour, "dash": dash, "width": 2.5}}
            )  # fmt: skip
    layout = _layout(
        440,
        xaxis=_axis("trial", rangemode="tozero", zeroline=False),
        yaxis=_axis("objective (search items)", zeroline=False),
        legend={"orientation": "h", "y": -0.25, "x": 0},
    )
    return {"data": [trace for trace in traces if trace["x"]], "layout": layout}


def _better(gate: Mapping[str, Any]) -> str:
    return "higher" if gate["higher_is_better"] else "lower"


def _known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _finite(value: Any) -> Any:
    return value if _known(value) else None


def _rounded(value: Any) -> Any:
    """With six digits, which are enough for a chart."""
    return float(f"{value:.6g}") if _known(value) else None
