"""Draws pictures. matplotlib is imported when one is drawn; its global state is as it was afterwards."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.escape import printable
from evomerge.examine.path import Barrier, Curve, ScoredPath, short_name
from evomerge.safety.durable import write_whole
from evomerge.scoring.gates import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
"""The pictures that can be written, by the ends of their files' names."""
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Distinct to colour-blind eyes too (Okabe and Ito 2008, "Color Universal Design"), without black and yellow."""
_MARKERS = "osD^vPX"
_PASSING = "#FBF3D0"
_WIDTH, _PANEL, _DPI = 8.0, 3.0, 150  # inches, inches, dots an inch
_TITLE, _LABEL = 90, 32
"""Characters of a line."""
_TICKS = 16
"""With more points than this not each of them is named on the axis."""


def draw_path(result: ScoredPath, file: Path) -> None:
    """Draws one panel for the scores of each metric, in the metric's direction, and one for the loss. OSError where
    `file` cannot be written."""
    from matplotlib import rc_context

    # Names are no formulas: by default a text with two dollar signs is. One without a glyph shows as a box.
    with rc_context({"text.usetex": False, "text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = io.BytesIO()
        _drawn(result).savefig(picture, format=file.suffix.lower().removeprefix("."))
    write_whole(file, picture.getvalue())


def _drawn(result: ScoredPath) -> Figure:
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(slice_.metric for slice_ in result.slices.values()))
    panels = len(metrics) + bool(result.losses)
    figure = Figure(figsize=(_WIDTH, 1.1 + _PANEL * panels), dpi=_DPI, layout="constrained")
    figure.suptitle(_words(result.title, _TITLE), fontsize=12)
    axes = list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])
    for ax, metric in zip(axes, metrics, strict=False):
        _scores(ax, result, metric)
    if result.losses:
        _losses(axes[-1], result)
    for ax in axes:
        _dress(ax, result)
    axes[-1].set_xlabel(_words(f"t      (0: {short_name(result.start)},  1: {short_name(result.end)})", _TITLE))
    return figure


def _scores(ax: Axes, result: ScoredPath, metric: str) -> None:
    """Draws the slices of one metric: points (filled where every floor is passed), 95 % intervals, floors."""
    for number, (name, slice_) in enumerate(result.slices.items()):
        scored = [p for p in result.points if p.scores]
        if slice_.metric != metric:
            continue
        style = _style(number)
        t, values = [p.t for p in scored], [slice_.show(p.scores[name].value) for p in scored]
        passing = [i for i, p in enumerate(scored) if _passes(result, p)]
        open_ = [i for i in range(len(scored)) if i not in passing]
        ax.plot(t, values, label=_words(name, _LABEL), markevery=open_, markerfacecolor="white", **style)
        ax.plot(t, values, markevery=passing, **style)
        bands = [(p.t, band) for p in scored if (band := interval(p.scores[name], slice_.sign)) is not None]
        ax.fill_between([t for t, _ in bands], [b[0] for _, b in bands], [b[1] for _, b in bands],
                        color=style["color"], alpha=0.15, linewidth=0)  # fmt: skip
        floor = result.gates[name].floor
        if floor is not None and math.isfinite(floor):
            ax.axhline(slice_.show(floor), color=style["color"], linestyle="--", linewidth=1.0)
    better = "higher" if _sign(result, metric) > 0 else "lower"
    ax.set_ylabel(_words(metric, _LABEL))
    ax.set_title(f"{_words(metric, _LABEL)} ({better} is better; bands: 95 %; dashed: floors)", loc="left", fontsize=10)


def _losses(ax: Axes, result: ScoredPath) -> None:
    curves = result.losses
    for number, name in enumerate(result.slices):
        if name in curves:
            style = {**_style(number), "linewidth": 1.2, "markersize": 3.5}
            ax.plot(*_columns(curves[name]), label=_words(name, _LABEL), **style)
    mean = result.mean_loss
    if len(curves) > 1:
        ax.plot(*_columns(mean), color="black", linewidth=2.2, label="mean")
    barrier = result.barrier(mean)
    if barrier is not None:
        ax.plot(*_columns([mean[0], mean[-1]]), color="black", linestyle=":", linewidth=1.5, label="straight line")
        _mark_barrier(ax, barrier, mean)
    ax.set_ylabel("loss (nats per token)")
    summary = "" if barrier is None else f"; {_barrier_text(barrier, len(curves) > 1)}"
    ax.set_title(f"loss of the right answers (lower is better{summary})", loc="left", fontsize=10)


def _barrier_text(barrier: Barrier, of_mean: bool) -> str:
    what = "barrier of the mean" if of_mean else "barrier"
    return f"{what}: {barrier.height:.4f} at t = {barrier.t:g}" if barrier.height else f"no {what}"


def _mark_barrier(ax: Axes, barrier: Barrier, curve: Curve) -> None:
    """Draws an arrow from the straight line up to the curve, where the excess is largest."""
    if barrier.height == 0:
        return
    top = dict(curve)[barrier.t]
    arrow = {"arrowstyle": "<->", "color": "black", "shrinkA": 0, "shrinkB": 0, "linewidth": 1.2}
    ax.annotate("", xy=(barrier.t, top), xytext=(barrier.t, top - barrier.height), arrowprops=arrow)


def _dress(ax: Axes, result: ScoredPath) -> None:
    """Draws the grid, the range of t, the part of the line that passes every floor, and the legend."""
    ax.grid(color="#E5E5E5", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    half = (result.wanted[-1] - result.wanted[0]) / (len(result.wanted) - 1) / 2
    ax.set_xlim(result.wanted[0] - half, result.wanted[-1] + half)
    if len(result.wanted) <= _TICKS:
        ax.set_xticks(result.wanted, [f"{t:g}" for t in result.wanted])
    label = "passes every floor"
    for point in result.points:
        if _passes(result, point):
            ax.axvspan(point.t - half, point.t + half, color=_PASSING, linewidth=0, zorder=0, label=label)
            label = "_"
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def _words(content: str, width: int) -> str:
    """A text from outside in lines of `width` characters. matplotlib hides the label of what begins with "_"."""
    folded = "\n".join(textwrap.wrap(printable(content), width, replace_whitespace=False)) or " "
    return f" {folded}" if folded.startswith("_") else folded


def _style(number: int) -> dict[str, Any]:
    """Returns the line style of the slice at this position."""
    at = number % len(_COLOURS)
    return {"color": _COLOURS[at], "marker": _MARKERS[at], "markersize": 5.5, "linewidth": 1.6}


def _columns(curve: Curve) -> tuple[Sequence[float], Sequence[float]]:
    return [t for t, _ in curve], [value for _, value in curve]


def _passes(result: ScoredPath, point: Any) -> bool:
    """Whether a point is marked as passing; without floors none is."""
    return point.feasible and any(gate.floor is not None for gate in result.gates.values())


def _sign(result: ScoredPath, metric: str) -> int:
    return next(slice_.sign for slice_ in result.slices.values() if slice_.metric == metric)
