"""Each merge method at its best: the default search, with equal evaluations, under floors.

    python benchmarks/methods.py SPECIALISTS --out DIR [--trials 50 100] [--seeds 0-4] [--rows ROW ...] [--only NAME]

SPECIALISTS holds `base`, `shakespeare`, `gsm8k`, `french` and `items/` (real, small checkpoints; bits per byte, floors
0.02 below the base). Beside them the quickstart's models are trained (accuracies, floors at the base's). Every row
searches a weight for each source and layer group, and what else its method takes; without polish, but in the row that
has its name. Each search is a command of its own with one thread; one that ended is not run again.

Prints the winners' mean gain over the base on the holdout items, in how many seeds there was a winner, and the
difference from task arithmetic of the seeds in which both have one, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from _searches import Ended, search
from paths import testbed
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student  # type: ignore[import-untyped]

_SHARE = {"low": 0.0, "high": 1.0}
_PLAIN = "task arithmetic"

ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    _PLAIN: ("task_arithmetic", {}),
    "polish": ("task_arithmetic", {}),
    "isotropy": ("isotropy", {"isotropy": _SHARE}),
    "isotropy by layers": ("isotropy", {"isotropy": {**_SHARE, "per": ["layers"]}}),
    "ties": ("ties", {"density": {**_SHARE, "low": 0.1}}),
    "svc": ("svc", {"alpha": {"low": 0.1, "high": 1.0}}),
    "rank": ("rank", {"rank": {"low": 0.05, "high": 1.0}}),
    "tsv": ("tsv", {}),
    "resmerge": ("resmerge", {"rho": _SHARE}),
    "consensus": ("consensus", {"threshold": _SHARE}),
    "stitch": ("stitch", {"density": {**_SHARE, "low": 0.02}}),
}
"""A row's method, and its genes besides the weight."""


def gain(ended: Ended) -> float | None:
    """The winner's gain over the base on the holdout items."""
    board, winner = ended.release.leaderboard, ended.release.winner
    base = next(trial for trial in board.trials if trial.label == "base")
    if winner is None:
        return None
    return board.outcome(winner).objective - board.outcome(base).objective


def searched(name: str, options: argparse.Namespace) -> dict[tuple[str, int], list[float | None]]:
    """(row, trials) -> the gain of each seed."""
    out = (options.out / name).absolute()
    data, fitness, _ = testbed(name, out / "models", options.specialists.absolute(), 100)
    fitness = {**fitness, "pruning": False}
    gains: dict[tuple[str, int], list[float | None]] = {}
    for seed in options.seeds:
        for row in options.rows:
            method, genes = ROWS[row]
            for trials in options.trials:
                place = out / f"{row.replace(' ', '-')}-{trials}-{seed}"
                space = {
                    **data,
                    "genes": {**data["genes"], "method": method, **genes},
                    "budget": {"trials": trials},
                    "polish": row == "polish",
                    "fitness": "fitness.yaml",
                }

                def write(place: Path = place, space: Mapping[str, Any] = space) -> Path:
                    place.mkdir(parents=True)
                    (place / "fitness.yaml").write_text(yaml.safe_dump(fitness, sort_keys=False))
                    (place / "space.yaml").write_text(yaml.safe_dump(dict(space), sort_keys=False))
                    return place / "space.yaml"

                gains.setdefault((row, trials), []).append(gain(search(place, write, "--seed", str(seed))))
                print(f"{name} {row} {trials} seed {seed}: {gains[row, trials][-1]}", flush=True)
    return gains


def difference(gains: Sequence[float | None], plain: Sequence[float | None]) -> str:
    """The mean difference of the seeds that have both, and its 95 % interval."""
    pairs = [a - b for a, b in zip(gains, plain, strict=True) if a is not None and b is not None]
    if len(pairs) < 2:
        return f"{pairs[0]:+.4f}" if pairs else ""
    reach = float(student.ppf(0.975, len(pairs) - 1)) * stdev(pairs) / len(pairs) ** 0.5
    return f"{fmean(pairs):+.4f} [{fmean(pairs) - reach:+.4f}, {fmean(pairs) + reach:+.4f}]"


def report(
    name: str, gains: Mapping[tuple[str, int], Sequence[float | None]], trials: Sequence[int], console: Console
) -> None:
    columns = [column for count in trials for column in (f"{count} trials", f"over {_PLAIN}")]
    table = Table("row", *columns, title=f"{name}: gain over the base on the holdout (seeds with a winner)")
    for row in dict.fromkeys(row for row, _ in gains):
        cells = []
        for count in trials:
            known = [value for value in gains[row, count] if value is not None]
            mean = f"{fmean(known):+.4f} " if known else "none "
            cells.append(f"{mean}({len(known)}/{len(gains[row, count])})")
            plain = gains.get((_PLAIN, count))
            cells.append("" if row == _PLAIN or plain is None else difference(gains[row, count], plain))
        table.add_row(row, *cells)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specialists", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="where models and runs are kept")
    parser.add_argument("--trials", type=int, nargs="+", default=[50, 100])
    parser.add_argument("--seeds", type=_seeds, default=range(5), metavar="A-B")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--only", choices=["specialists", "quickstart"])
    options = parser.parse_args()
    console = Console(width=130)
    for name in ("specialists", "quickstart"):
        if options.only in (None, name):
            report(name, searched(name, options), options.trials, console)
    return 0


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


if __name__ == "__main__":
    sys.exit(main())
