"""The tables of benchmarks/search.py, and whether they meet what was asked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from _rows import LIMITED, OURS

from evomerge.scoring.stats.standard_errors import t_quantile

Gains = Sequence[float | None]
JUDGED = (50, 100, 200)
PEERS = ("Optuna TPE", "mergekit-evolve")


def gains(runs: Mapping[str, Mapping[int, Gains]], budgets: Sequence[int]) -> bool:
    """`runs`: row -> seed -> gains at the budgets. Prints a table for each budget, and how the means go with it."""
    ours = runs.get(OURS, {})
    met = True
    for at, budget in enumerate(budgets):
        print(f"\n{budget} evaluations        winners   gain over the base [95 %]       default - row [95 %]   wins")
        for row, seeds in runs.items():
            found = [own[at] for own in seeds.values() if own[at] is not None]
            pairs = [(ours[seed][at], own[at]) for seed, own in seeds.items() if seed in ours]
            both = [a - b for a, b in pairs if a is not None and b is not None]
            wins = sum(a is not None and (b is None or a > b) for a, b in pairs)
            against = ("", "") if row == OURS else (_interval(both), f"{wins}/{len(pairs)}")
            print(f"{row:20} {len(found):4}/{len(seeds):<5} {_interval(found):>30} {against[0]:>28} {against[1]:>6}")
            if row == OURS:
                met &= len(found) >= 0.9 * len(seeds)
            elif budget in JUDGED:
                fewer = sum(a is not None for a, _ in pairs) < sum(b is not None for _, b in pairs)
                met &= not fewer and (not both or statistics.mean(both) >= 0)
    print("\nmean gain and winners at " + ", ".join(map(str, budgets)))
    for row, seeds in runs.items():
        columns = [[own[at] for own in seeds.values() if own[at] is not None] for at in range(len(budgets))]
        means = [statistics.mean(column) if column else None for column in columns]
        falls = [b for b, last, mean in zip(budgets[1:], means, means[1:], strict=False) if _falls(last, mean)]
        cells = [f"{'-' if m is None else f'{m:+.4f}'} ({len(c)})" for m, c in zip(means, columns, strict=True)]
        print(f"{row:20}" + "".join(f"{cell:>15}" for cell in cells) + f"   falls: {falls or 'never'}")
        met &= row != OURS or not falls
    judged = [budget for budget in budgets if budget in JUDGED]
    print(f"the default has winners in nine of ten, never falls, and no row is ahead of it at {judged}: {met}")
    return met


def _falls(last: float | None, mean: float | None) -> bool:
    """Whether a mean is below the one at the budget before, by more than rounding."""
    return last is not None and (mean is None or mean < last - 1e-9)


def known(
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]], budgets: Sequence[int], longest: int, close: float
) -> bool:
    """`runs`: row -> seed -> what `search.known` found. Prints one table."""
    columns = "".join(f"{f'regret at {budget}':>20}" for budget in budgets)
    print(f"{'':20}{columns}   evaluations to {close:.0%} (median; arrived)")
    arrivals = {row: [run["arrived"] or math.inf for run in seeds.values()] for row, seeds in runs.items()}
    for row, seeds in runs.items():
        cells = []
        for at in range(len(budgets)):
            found = [run["regrets"][at] for run in seeds.values() if run["regrets"][at] is not None]
            shown = f"{statistics.median(found):.3f}" if found else "-"
            cells.append(f"{f'{shown} ({len(found)}/{len(seeds)})':>20}")
        median, arrived = statistics.median(arrivals[row]), sum(map(math.isfinite, arrivals[row]))
        limit = budgets[-1] if row == OURS else LIMITED.get(row, longest)
        shown = f"{median:.0f}" if math.isfinite(median) else f"over {limit}"
        print(f"{row:20}{''.join(cells)}   {shown:>9} ({arrived}/{len(seeds)})")
    if OURS not in runs or not any(row in runs for row in PEERS):
        return True
    ours = statistics.median(arrivals[OURS])
    theirs = {row: min(statistics.median(arrivals[row]), longest) for row in PEERS if row in runs}
    met = all(ours <= 0.5 * value for value in theirs.values())
    print(f"at most half the evaluations of {' and of '.join(theirs)}: {met}")
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
