"""Shows the gain of the steps along the gradient, by source and layer."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from evomerge.study.run.release import Contributions

_BAR = 10
"""Blocks of the longest bar."""


def gained_table(gained: Contributions) -> Table:
    """Builds a table: a row for each place (layers, in their order), a column for each gene and source, and bars for
    the sums of the rows."""
    columns = list(dict.fromkeys((gene, source) for gene, source, _ in gained.parts))
    rows = list(dict.fromkeys(place for _, _, place in gained.parts))
    sums = {row: sum(part for (_, _, place), part in gained.parts.items() if place == row) for row in rows}
    before, after = gained.objective
    title = (
        f"What the gradient gained: objective {before:.4f} (trial {gained.first}) to {after:.4f} (trial {gained.last})"
    )
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    table.caption = "by slopes along the way: they add up to the gain as the proxy losses see it"
    table.caption_justify = "left"
    table.add_column("")
    for gene, source in columns:
        table.add_column(f"{gene}\n{source}" if source else gene, justify="right")
    table.add_column("all", justify="right")
    table.add_column("")
    longest = max((abs(total) for total in sums.values()), default=0.0) or 1.0
    for row in rows:
        parts = (gained.parts.get((*column, row)) for column in columns)
        bar = Text("█" * round(_BAR * abs(sums[row]) / longest), style="green" if sums[row] > 0 else "red")
        table.add_row(row or "everywhere", *(_number(part) for part in parts), _number(sums[row]), bar)
    totals = [sum(part for (g, s, _), part in gained.parts.items() if (g, s) == column) for column in columns]
    table.add_section()
    table.add_row("all", *map(_number, totals), _number(sum(totals)), "")
    return table


def gained_data(gained: Contributions | None) -> dict[str, Any] | None:
    """Returns the same as JSON."""
    if gained is None:
        return None
    parts = [
        {"gene": g, "source": s or None, "where": w or None, "gain": part} for (g, s, w), part in gained.parts.items()
    ]
    return {"from_trial": gained.first, "to_trial": gained.last, "objective": list(gained.objective), "parts": parts}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
