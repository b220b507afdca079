"""Trials under another fitness file, and two trials item by item: tables and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evomerge.report.results import both_splits, carried_over
from evomerge.report.tables import describe, leaderboard_table, number
from evomerge.scoring.stats.paired import Comparison
from evomerge.study.after.compare import Compared
from evomerge.study.after.rank import Ranked

_SURE = 0.05


def ranked_tables(ranked: Ranked, top: int = 10) -> Group:
    """References and top trials by search scores, and both splits of those that have holdout scores."""
    search = ranked.search
    rows = [(describe(t), t) for t in search.trials if t.kind == "reference" and t.state != "running"]
    best = search.front() or [t for t in search.merges() if t.kind == "search"][:top]
    rows += [(describe(t), t) for t in best if t.kind == "search"]
    metrics = {name: about["metric"] for name, about in ranked.slices.items()}
    tables = [leaderboard_table(f"Scores on the search split, ranked by {ranked.fitness.name}", search, rows, metrics)]
    if ranked.holdout:
        title = "Those with holdout scores, with 95 % intervals"
        tables.append(both_splits(title, ranked.folder.items, search, ranked.holdout, metrics))
    return Group(*tables)


def ranked_words(ranked: Ranked) -> str:
    """Who wins now and who won before, and what is not certain about it."""
    split = "holdout" if ranked.holdout else "search"
    before = f"before: {describe(ranked.before) if ranked.before else 'none'}"
    if ranked.winner is None:
        lines = [f"no winner: no merge passes every floor on the {split} split ({before})"]
    else:
        same = ranked.before is not None and ranked.before.number == ranked.winner.number
        lines = [f"winner on the {split} split: {describe(ranked.winner)} ({'as before' if same else before})"]
    gain = carried_over(ranked.search, ranked.holdout, ranked.winner) if ranked.holdout else None
    lines += [str(gain)] if gain else []
    if ranked.unscored:
        names = ", ".join(t.name for t in ranked.unscored)
        lines.append(f"note: {names}: among the top of the search now, but without holdout scores")
    if ranked.pruned:
        lines.append(f"note: {len(ranked.pruned)} stopped early, without a certain place{_ahead(ranked)}")
    return "\n".join(lines)


def _ahead(ranked: Ranked, most: int = 5) -> str:
    if not ranked.ahead:
        return "; none of them would lead by its predicted scores"
    names = ", ".join(str(t.number) for t in ranked.ahead[:most]) + (", ..." if len(ranked.ahead) > most else "")
    return f"; {len(ranked.ahead)} of them would lead by their predicted scores: {names}"


def compared_table(compared: Compared) -> Table:
    """One row a slice: both scores, their difference with its interval, and whether it can be chance."""
    a, b = describe(compared.first), describe(compared.second)
    table = Table(title=f"{a} against {b} on the {compared.split} items", title_justify="left", title_style="bold")
    table.header_style = "bold"
    for column in ("slice", "metric", a, b, "difference (95 % interval)", "p", "test", "items"):
        table.add_column(column, justify="left" if column in ("slice", "metric", "test") else "right")
    for name, about in compared.slices.items():
        table.add_row(name, *_row(compared.comparisons[name], about, compared.totals[name]))
    return table


def compared_words(compared: Compared) -> str:
    """On which slices one of them is better beyond chance."""
    better: Mapping[str, list[str]] = {describe(compared.first): [], describe(compared.second): []}
    for name, found in compared.comparisons.items():
        if found.p is not None and found.p < _SURE:
            wins = found.difference * compared.slices[name]["sign"] > 0
            better[describe(compared.first if wins else compared.second)].append(name)
    told = [f"{model} is better on {', '.join(names)}" for model, names in better.items() if names]
    return "; ".join(told) or "no difference that is beyond chance (p < 0.05)"


def _row(found: Comparison, about: Mapping[str, Any], total: int) -> list[Text]:
    arrow = "" if about["sign"] > 0 else " (lower is better)"
    count = f"{found.items}" if found.items in (0, total) else f"{found.items} of {total}"
    p = "-" if found.p is None else ("< 0.001" if found.p < 0.001 else f"{found.p:.3f}")
    sure = "bold" if found.p is not None and found.p < _SURE else ""
    values = [number(found.first), number(found.second)]
    difference = f"{found.difference:+.4f}" + (f" ({_signed(found.interval)})" if found.interval else "")
    cells = [f"{about['metric']}{arrow}", *values, difference, p, found.test, count]
    return [Text(cell, style=sure if cell in (difference, p) else "") for cell in cells]


def _signed(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:+.4f} to {high:+.4f}"
