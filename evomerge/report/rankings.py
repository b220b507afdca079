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
    """Builds a table of references and top trials by search scores, and one of both splits for the trials that have
    holdout scores."""
    search = ranked.search
    rows = [(describe(t), t) for t in search.trials if t.kind == "reference" and t.state != "running"]
    best = search.front() or [t for t in search.merges() if t.kind == "search"][:top]
    rows += [(describe(t), t) for t in best if t.kind == "search"]
    metrics = {name: info["metric"] for name, info in ranked.slices.items()}
    tables = [leaderboard_table(f"Scores on the search split, ranked by {ranked.fitness.name}", search, rows, metrics)]
    if ranked.holdout:
        title = "Those with holdout scores, with 95 % intervals"
        tables.append(both_splits(title, ranked.folder.items, search, ranked.holdout, metrics))
    return Group(*tables)


def ranked_words(ranked: Ranked) -> str:
    """Says which trial wins now, which won before, and what is not certain about it."""
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
        lines.append(f"note: {len(ranked.pruned)} pruned, without a certain rank{_ahead(ranked)}")
    return "\n".join(lines)


def _ahead(ranked: Ranked, most: int = 5) -> str:
    if not ranked.ahead:
        return "; none of them would lead by its predicted scores"
    names = ", ".join(str(t.number) for t in ranked.ahead[:most]) + (", ..." if len(ranked.ahead) > most else "")
    return f"; {len(ranked.ahead)} of them would lead by their predicted scores: {names}"


def compared_table(compared: Compared) -> Table:
    """Builds a table with one row a slice: both scores, their difference with its interval, and its p-value."""
    a, b = describe(compared.first), describe(compared.second)
    table = Table(title=f"{a} against {b} on the {compared.split} items", title_justify="left", title_style="bold")
    table.header_style = "bold"
    for column in ("slice", "metric", a, b, "difference (95 % interval)", "p", "test", "items"):
        table.add_column(column, justify="left" if column in ("slice", "metric", "test") else "right")
    for name, info in compared.slices.items():
        table.add_row(name, *_row(compared.comparisons[name], info, compared.totals[name]))
    return table


def compared_words(compared: Compared) -> str:
    """Says on which slices one trial is better beyond chance."""
    better: Mapping[str, list[str]] = {describe(compared.first): [], describe(compared.second): []}
    for name, comparison in compared.comparisons.items():
        if comparison.p is not None and comparison.p < _SURE:
            wins = comparison.difference * compared.slices[name]["sign"] > 0
            better[describe(compared.first if wins else compared.second)].append(name)
    sentences = [f"{model} is better on {', '.join(names)}" for model, names in better.items() if names]
    return "; ".join(sentences) or "no difference that is beyond chance (p < 0.05)"


def _row(comparison: Comparison, info: Mapping[str, Any], total: int) -> list[Text]:
    arrow = "" if info["sign"] > 0 else " (lower is better)"
    count = f"{comparison.items}" if comparison.items in (0, total) else f"{comparison.items} of {total}"
    p = "-" if comparison.p is None else ("< 0.001" if comparison.p < 0.001 else f"{comparison.p:.3f}")
    sure = "bold" if comparison.p is not None and comparison.p < _SURE else ""
    values = [number(comparison.first), number(comparison.second)]
    difference = f"{comparison.difference:+.4f}" + (f" ({_signed(comparison.interval)})" if comparison.interval else "")
    cells = [f"{info['metric']}{arrow}", *values, difference, p, comparison.test, count]
    return [Text(cell, style=sure if cell in (difference, p) else "") for cell in cells]


def _signed(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:+.4f} to {high:+.4f}"
