"""Trials under another fitness file, and two trials item by item: tables and words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evomerge.escape import excerpt
from evomerge.files.objects import LENGTHS
from evomerge.numbers import number
from evomerge.report.results import both_splits, carried_over, closest, missed_floors
from evomerge.report.shown import Cell, Column, Row, Sheet
from evomerge.report.tables import INTERVALS, describe, directed, leaderboard_table
from evomerge.report.verdicts import SURE
from evomerge.scoring.stats.paired import EXACT, Comparison
from evomerge.study.after.compare import Compared
from evomerge.study.after.differences import Difference, Differences
from evomerge.study.after.rank import Ranked
from evomerge.types import ItemScore

PROMPT, ANSWER = 300, 200
"""Characters of a prompt, or of its choices, and of an answer that are shown of an item."""

_NO_TEXTS = "the run kept no texts of these items: older ones have none"


def ranked_tables(ranked: Ranked, top: int = 10) -> list[Sheet]:
    """Builds a table of references and top trials by search scores, and one of both splits for the trials that have
    holdout scores."""
    search = ranked.search
    rows = [(describe(t), t) for t in search.trials if t.kind == "reference" and t.state != "running"]
    best = search.front() or [t for t in search.merges() if t.kind == "search"][:top]
    rows += [(describe(t), t) for t in best if t.kind == "search"]
    metrics = {name: str(info["metric"]) for name, info in ranked.slices.items()}
    tables = [leaderboard_table(f"Scores on the search split, ranked by {ranked.fitness.name}", search, rows, metrics)]
    if ranked.holdout:
        title = "Those with holdout scores"
        tables.append(both_splits(title, ranked.folder.items, search, ranked.holdout, metrics))
    return tables


def ranked_words(ranked: Ranked) -> list[str]:
    """Says which trial wins now, which won before, and what is not certain about it."""
    split = "holdout" if ranked.holdout else "search"
    before = f"before: {describe(ranked.before) if ranked.before else 'none'}"
    if ranked.winner is None:
        board = ranked.holdout or ranked.search
        near = closest(board)
        missed = f"; closest is {describe(near)}: {missed_floors(board, near)}" if near is not None else ""
        words = [f"no winner: no merge passes every floor on the {split} split{missed} ({before})"]
    else:
        same = ranked.before is not None and ranked.before.number == ranked.winner.number
        words = [f"winner on the {split} split: {describe(ranked.winner)} ({'as before' if same else before})"]
    gain = carried_over(ranked.search, ranked.holdout, ranked.winner) if ranked.holdout else None
    words += [str(gain)] if gain else []
    if ranked.unscored:
        names = ", ".join(t.name for t in ranked.unscored)
        words.append(f"note: {names}: among the top of the search now, but without holdout scores")
    if ranked.pruned:
        words.append(f"note: {len(ranked.pruned)} pruned, without a certain rank{_ahead(ranked)}")
    return words


def _ahead(ranked: Ranked, most: int = 5) -> str:
    if not ranked.ahead:
        return "; none of them would lead by its predicted scores"
    names = ", ".join(str(t.number) for t in ranked.ahead[:most]) + (", ..." if len(ranked.ahead) > most else "")
    return f"; {len(ranked.ahead)} of them would lead by their predicted scores: {names}"


def compared_table(compared: Compared) -> Sheet:
    """Builds a table with one row a slice: both scores, their difference with its interval, and its p-value."""
    a, b = describe(compared.first), describe(compared.second)
    columns = [
        Column("metric", numbers=False),
        *(Column(name) for name in (a, b)),
        Column("difference", f"{_short(a)} minus {_short(b)}"),
        Column("p"),
        Column("test", numbers=False),
        Column("items", numbers=False),
    ]
    rows = [
        Row([name], _row(compared.comparisons[name], info, compared.totals[name]))
        for name, info in compared.slices.items()
    ]
    legend = ["↓: lower is better"] if any(info["sign"] < 0 for info in compared.slices.values()) else []
    return Sheet(f"{a} against {b} on the {compared.split} items", ["slice"], columns, rows, legend, more=INTERVALS)


def _short(name: str) -> str:
    """The name without what is in brackets behind it."""
    return name.partition(" (")[0]


def compared_words(compared: Compared) -> str:
    """Says on which slices one trial is better beyond chance, and which one is by the objective."""
    better: Mapping[str, list[str]] = {describe(compared.first): [], describe(compared.second): []}
    for name, comparison in compared.comparisons.items():
        if comparison.p is not None and comparison.p < SURE:
            wins = comparison.difference * compared.slices[name]["sign"] > 0
            better[describe(compared.first if wins else compared.second)].append(name)
    sentences = [f"{model} is better on {', '.join(names)}" for model, names in better.items() if names]
    found = "; ".join(sentences) or "no difference that is beyond chance (p < 0.05)"
    return "; ".join([found, *_by_objective(compared)])


def _by_objective(compared: Compared) -> list[str]:
    """Says which trial is better in the number that the search followed, whatever chance has to do with it."""
    a, b = compared.first, compared.second
    if a.objective is None or b.objective is None:
        return []
    if a.objective == b.objective:
        return [f"both have the objective {number(a.objective)}"]
    first, second = (a, b) if a.objective > b.objective else (b, a)
    values = f"{number(first.objective)} against {number(second.objective)}"
    return [f"by the objective {describe(first)} is better: {values}"]


def differing_words(compared: Compared) -> list[str]:
    """Lists the items of each slice on which the two differ, where these were asked for: excerpts of what was asked and
    of both answers, each text on one line."""
    if compared.differences is None:
        return []
    lines, names = [], (_short(describe(compared.first)), _short(describe(compared.second)))
    for slice_, found in compared.differences.items():
        lines += ["", f"{slice_}: {_counted(found, *names)}"]
        for difference in found.most:
            lines += _difference(difference, names)
        lines += [] if any(d.document for d in found.most) or not found.most else [f"  {_NO_TEXTS}"]
    if any(found.differ > len(found.most) for found in compared.differences.values()):
        lines += ["", "`--most N` lists more of a slice, `--slice NAME` one alone; texts are whole with `--json`"]
    if compared.without_answers:
        left_out = ", ".join(compared.without_answers)
        lines += ["", f"no answers were kept of {left_out}; `--slice NAME` lists the items whose scores differ"]
    return lines


def _counted(found: Differences, a: str, b: str) -> str:
    """On how many items they differ, and how many of these are listed."""
    parts = []
    if found.items:
        parts.append(f"{a} is better on {found.first_better}, {b} on {found.second_better} of {found.items} items")
    if found.answered:
        parts.append(f"answers differ on {found.answers_differ} of {found.answered}")
    elif found.items:
        parts.append("no answers were kept")
    if found.differ > len(found.most):
        parts.append(f"listed: {len(found.most)} of {found.differ}")
    return "; ".join(parts) or "no items with scores or answers of both"


def _difference(difference: Difference, names: tuple[str, str]) -> list[str]:
    document, item = difference.document, difference.first.item
    lines = [f"  item {document.number + 1}, {item}" if document else f"  item {item}"]
    if document is not None:
        lines.append(f"    asked: {_text(document.prompt, PROMPT)}")
        lines += (
            [f"    choices: {_text(' | '.join(map(str.strip, document.choices)), PROMPT)}"] if document.choices else []
        )
        lines += [] if document.answer is None else [f"    right answer: {_text(document.answer, ANSWER)}"]
    for name, score, lengths in zip(names, (difference.first, difference.second), difference.lengths, strict=True):
        lines += _given(name, score, lengths)
    return lines


def _given(name: str, score: ItemScore, lengths: Mapping[str, float]) -> list[str]:
    """Its score, what is known of its length, and its answer; below it what a filter took that from."""
    tokens, truncated = map(lengths.get, LENGTHS)
    parts = [number(score.score)]
    parts += [] if tokens is None else [f"{tokens:g} {'token' if tokens == 1 else 'tokens'}"]
    parts += ["truncated" if truncated == 1 else f"{truncated:.0%} truncated"] if truncated else []
    parts += [] if score.answer is None else [f"answered: {_text(score.answer, ANSWER)}"]
    wrote = [] if score.written is None else [f"      wrote: {_text(score.written, ANSWER)}"]
    return [f"    {name}: {', '.join(parts)}", *wrote]


def _text(text: str, most: int) -> str:
    """An excerpt; of a text without any letter, as Python writes it."""
    return excerpt(text.strip() or repr(text), most)


def _row(comparison: Comparison, info: Mapping[str, Any], total: int) -> list[Cell]:
    count = f"{comparison.items}" if comparison.items in (0, total) else f"{comparison.items} of {total}"
    count = "-" if comparison.test == EXACT else count
    p = "-" if comparison.p is None else ("< 0.001" if comparison.p < 0.001 else f"{comparison.p:.3f}")
    sure = "bold" if comparison.p is not None and comparison.p < SURE else ""
    difference = "-" if math.isnan(comparison.difference) else _signed(comparison.difference)
    return [
        Cell(directed(str(info["metric"]), info["sign"])),
        Cell(number(comparison.first)),
        Cell(number(comparison.second)),
        Cell(difference, f" ({_span(comparison.interval)})" if comparison.interval else "", sure),
        Cell(p, style=sure),
        Cell(comparison.test),
        Cell(count),
    ]


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else ''}{number(value + 0.0)}"  # a difference of sizes may be -0.0


def _span(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{low:+.4f} to {high:+.4f}"
