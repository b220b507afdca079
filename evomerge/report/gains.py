"""Shows the gain of the steps along the gradient, by source and layer."""

from __future__ import annotations

from typing import Any

from evomerge.report.shown import Cell, Column, Row, Sheet
from evomerge.study.run.release import Contributions

_BAR = 10
"""Blocks of the longest bar."""


def gained_table(gained: Contributions) -> Sheet:
    """Builds a table: a row for each place (layers, in their order), a column for each gene and source, and bars for
    the sums of the rows."""
    groups = list(dict.fromkeys((gene, source) for gene, source, _ in gained.parts))
    places = list(dict.fromkeys(place for _, _, place in gained.parts))
    sums = {place: sum(part for (_, _, where), part in gained.parts.items() if where == place) for place in places}
    before, after = gained.objective
    title = (
        f"What the gradient gained: objective {before:.4f} (trial {gained.first}) to {after:.4f} (trial {gained.last})"
    )
    legend = ["by slopes along the way: they add up to the gain as the proxy losses see it"]
    columns = [*(Column(gene, source) for gene, source in groups), Column("all", "")]
    longest = max((abs(total) for total in sums.values()), default=0.0) or 1.0
    rows = []
    for place in places:
        parts = (gained.parts.get((*group, place)) for group in groups)
        bar = f" {'█' * round(_BAR * abs(sums[place]) / longest):{_BAR}}"
        style = "green" if sums[place] > 0 else "red"
        cells = [*(Cell(_number(part)) for part in parts), Cell(_number(sums[place]), bar, style)]
        rows.append(Row([place or "everywhere"], cells, ends=place == places[-1]))
    totals = [sum(part for (g, s, _), part in gained.parts.items() if (g, s) == group) for group in groups]
    rows.append(Row(["all"], [*(Cell(_number(t)) for t in totals), Cell(_number(sum(totals)), " " * (_BAR + 1))]))
    return Sheet(title, ["where"], columns, rows, legend)


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
