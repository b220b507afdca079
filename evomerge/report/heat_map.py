"""Draws where the sources of a merge conflict, and where they moved most: layers down, modules across."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evomerge.checkpoints.samples.deltas import Deltas
from evomerge.checkpoints.samples.sums import Estimate, TensorSums
from evomerge.escape import printable
from evomerge.report.checks import by_place, conflict, relative
from evomerge.safety.durable import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI, _CELL, _LEAST = 150, 0.3, 3.0
_TALL = 0.14
_MOST_NAMES = 40
_LEAST_ASIDE = 0.05
Number = Callable[[Deltas, Sequence[TensorSums]], Estimate | None]


def draw_heat_map(deltas: Deltas, file: Path) -> None:
    """Draws one panel for the share of opposed signs (of two sources or more), and one for |delta| / |base|. OSError
    where `file` cannot be written."""
    from matplotlib import rc_context

    with rc_context({"text.usetex": False, "text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = io.BytesIO()
        _drawn(deltas).savefig(picture, format=file.suffix.lower().removeprefix("."))
    write_whole(file, picture.getvalue())


def _drawn(deltas: Deltas) -> Figure:
    from matplotlib.figure import Figure

    cells = by_place(deltas)
    rows = sorted({layer for layer, _ in cells if layer is not None})
    inside = list(dict.fromkeys(module for layer, module in cells if layer is not None))
    outside = list(dict.fromkeys(module for layer, module in cells if layer is None))
    panels: list[tuple[str, Number, bool]] = [("|delta| / |base|, mean of the sources", relative, False)]
    if len(deltas.sources) > 1:
        panels.insert(0, ("share of changed elements with opposed signs (0.5: chance)", conflict, True))
    columns = [*inside, *outside]
    width = max(_LEAST, _CELL * len(columns) + 1.5)
    height = max(_LEAST, _TALL * (len(rows) + 1) + 2.0)
    figure = Figure(figsize=(width * len(panels), height), dpi=_DPI, layout="constrained")
    figure.suptitle(printable(", ".join(deltas.sources))[:100], fontsize=11)
    axes = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for ax, (title, of, is_share) in zip(axes, panels, strict=True):
        values = np.full((len(rows) + 1, len(columns)), np.nan)
        for (layer, module), tensors in cells.items():
            found = of(deltas, tensors)
            row = len(rows) if layer is None else rows.index(layer)
            values[row, columns.index(module)] = np.nan if found is None else found.value
        _panel(figure, ax, values, title, is_share)
        _names(ax, rows, columns, bool(outside))
    return figure


def _panel(figure: Figure, ax: Axes, values: NDArray[np.float64], title: str, is_share: bool) -> None:
    known = values[np.isfinite(values)]
    low, high, colours = 0.0, max(1e-12, float(known.max(initial=0.0))), "viridis"
    if is_share:  # a half of the signs is opposed by chance: that is the middle of the colours
        aside = max(_LEAST_ASIDE, float(np.abs(known - 0.5).max(initial=0.0)))
        low, high, colours = 0.5 - aside, 0.5 + aside, "coolwarm"
    image = ax.imshow(values, aspect="auto", cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    figure.colorbar(image, ax=ax, shrink=0.8)
    ax.set_title(title, loc="left", fontsize=9)


def _names(ax: Axes, rows: Sequence[int], columns: Sequence[str], outside: bool) -> None:
    step = max(1, -(-len(rows) // _MOST_NAMES))
    shown = list(range(0, len(rows), step))
    labels = [str(rows[i]) for i in shown]
    if outside:
        shown, labels = [*shown, len(rows)], [*labels, "outside"]
    ax.set_yticks(shown, labels, fontsize=7)
    ax.set_ylabel("layer")
    ax.set_xticks(range(len(columns)), [printable(name)[:40] for name in columns], rotation=90, fontsize=7)
