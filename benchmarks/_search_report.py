"""The tables of benchmarks/search.py, and whether they meet what was asked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from _rows import OURS

from evomerge.scoring.stats.standard_errors import t_quantile

Gains = Sequence[float | None]
JUDGED = (50, 100, 200)
PEERS = ("Optuna TPE", "mergekit-evolve")


def real(runs: Mapping[str, Sequence[Gains]], budgets: Sequence[int]) -> bool:
    """`runs`: row -> [seeds][budgets] gains. Prints a table for each budget."""
    met = True
    for at, budget in enumerate(budgets):
        ours = [gains[at] for gains in runs[OURS]]
        print(f"\n{budget} evaluations   feasible   gain over the base [95 %]       default - row [95 %]   wins")
        for row, seeds in runs.items():
            own = [gains[at] for gains in seeds]
            found = [gain for gain in own if gain is not None]
            pairs = [(a, b) for a, b in zip(ours, own, strict=True)]
            both = [a - b for a, b in pairs if a is not None and b is not None]
            wins = sum(a is not None and (b is None or a > b) for a, b in pairs)
            beaten = wins > len(pairs) / 2 and (not both or statistics.mean(both) > 0)
            against = ("", "") if row == OURS else (_interval(both), f"{wins}/{len(pairs)}")
            print(f"{row:16} {len(found):4}/{len(own):<5} {_interval(found):>30} {against[0]:>28} {against[1]:>6}")
            met &= row == OURS or budget not in JUDGED or beaten
        if budget == 100:
            met &= sum(gain is not None for gain in ours) >= 0.9 * len(ours)
    print(f"\n(a) feasible in nine of ten at 100, ahead of every row at {JUDGED}: {met}")
    return met


def known(runs: Mapping[str, Sequence[Mapping[str, Any]]], budgets: Sequence[int], longest: int, close: float) -> bool:
    """`runs`: row -> [seeds] what `search.known` found. Prints one table."""
    columns = "".join(f"{f'regret at {budget}':>20}" for budget in budgets)
    print(f"{'':16}{columns}   evaluations to {close:.0%} (median; arrived)")
    arrivals = {row: [run["arrived"] or math.inf for run in seeds] for row, seeds in runs.items()}
    for row, seeds in runs.items():
        cells = []
        for at in range(len(budgets)):
            found = [run["regrets"][at] for run in seeds if run["regrets"][at] is not None]
            shown = f"{statistics.median(found):.3f}" if found else "-"
            cells.append(f"{f'{shown} ({len(found)}/{len(seeds)})':>20}")
        median, arrived = statistics.median(arrivals[row]), sum(map(math.isfinite, arrivals[row]))
        limit = budgets[-1] if row == OURS else longest
        shown = f"{median:.0f}" if math.isfinite(median) else f"over {limit}"
        print(f"{row:16}{''.join(cells)}   {shown:>9} ({arrived}/{len(seeds)})")
    ours = statistics.median(arrivals[OURS])
    theirs = {row: min(statistics.median(arrivals[row]), longest) for row in PEERS}
    met = all(ours <= 0.5 * value for value in theirs.values())
    print(f"(b) at most half the evaluations of {' and of '.join(PEERS)}: {met}")
    return met


def _interval(values: Sequence[float]) -> str:
    """The mean and its 95 % interval over the seeds."""
    if not values:
        return "-"
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.4f}"
    half = t_quantile(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"
