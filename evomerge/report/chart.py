"""A chart made of characters: how the best objective rose over the trials."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.numbers import number

_SIGNS = {"flat": "─", "up": "│", "turn": "╭", "turned": "╯", "axis": "┤"}
_ASCII = {"flat": "-", "up": "|", "turn": ",", "turned": "'", "axis": "|"}


def chart(values: Sequence[float | None], width: int, height: int, ascii_only: bool = False) -> list[str]:
    """Draws values that never fall as a line of steps; empty where there is none to draw.

    Args:
        values: one a trial; None where there is none yet.
        width, height: in characters; the ends of the scale stand at the left.
        ascii_only: whether the terminal has no other letters.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or height < 1:
        return []
    signs = _ASCII if ascii_only else _SIGNS
    low, high = known[0], known[-1]
    labels = [number(high), *[""] * (height - 2), *([number(low)] if height > 1 else [])]
    margin = max(map(len, labels))
    columns = _columns(values, max(1, width - margin - 2))
    rows = [None if value is None else _row(value, low, high, height) for value in columns]
    drawn = [[" "] * len(rows) for _ in range(height)]
    before: int | None = None
    for at, row in enumerate(rows):
        if row is None:
            continue
        if before is None or before == row:
            drawn[row][at] = signs["flat"]
        else:
            drawn[row][at], drawn[before][at] = signs["turn"], signs["turned"]
            for between in range(row + 1, before):
                drawn[between][at] = signs["up"]
        before = row
    return [f"{label:>{margin}} {signs['axis']}{''.join(line)}" for label, line in zip(labels, drawn, strict=True)]


def _columns(values: Sequence[float | None], count: int) -> list[float | None]:
    """The value at the end of each column's trials; few trials take a column each."""
    if len(values) <= count:
        return list(values)
    return [values[(at + 1) * len(values) // count - 1] for at in range(count)]


def _row(value: float, low: float, high: float, height: int) -> int:
    """0 is the top."""
    if high <= low:
        return height - 1
    return round((height - 1) * (high - value) / (high - low))
