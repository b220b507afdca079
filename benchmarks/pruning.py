"""What a search finds when it scores its candidates on a part of the items, against one that scores all on all.

    python benchmarks/pruning.py FOLDER [--trials 300] [--seeds 5] [--processes 2]

FOLDER is as in specialists.py, and so is the search: task arithmetic, a weight for each source and layer, three slices
of bits per byte with floors relative to the base. Each seed runs twice, with `pruning: false` and with all
pruners. Prints for each run how many items were scored (search and holdout split, references included) and the winner's
objective on the holdout items; then the share of the items, and the difference of the objectives against the standard
error that the objective has by the scatter of the items. Finished runs in --out are not run again. Exits with 1 where
more than a third of the items was scored or the objectives differ by more than their standard error.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from _searches import Ended, search
from specialists import write_files

from evomerge.study.run.items import read_items

MOST = 1 / 3


@dataclass(frozen=True)
class Outcome:
    items: int
    objective: float
    stderr: float


def run(root: Path, folder: Path, trials: int, seed: int, pruning: bool) -> Outcome:
    """One search in a process of its own, unless it is there already."""
    place = root / f"{'pruning' if pruning else 'plain'}-{seed}"
    options = ["--seed", str(seed), *([] if pruning else ["--full"])]
    ended = search(place, lambda: write_files(place, folder, trials), *options)
    return read(ended, place / "run")


def read(ended: Ended, place: Path) -> Outcome:
    """The items that a finished run scored, by its records, and its winner on the holdout."""
    state = ended.status
    if state.winner is None or state.winner.objective is None:
        sys.exit(f"{place}: no candidate passes every floor; perhaps --trials {state.done} are too few")
    searched = sum(t.evaluated for t in state.search.trials)
    holdout = sum(len(read_items(place / "items", t.number, "holdout")) for t in ended.release.leaderboard.trials)
    errors = [error for error in state.winner.stderr.values() if error is not None]
    stderr = math.sqrt(math.fsum(e * e for e in errors)) / len(errors)
    return Outcome(searched + holdout, state.winner.objective, stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"))
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    root, folder = options.out.absolute(), options.folder.absolute()
    jobs = [(seed, pruning) for seed in range(options.seeds) for pruning in (False, True)]
    with ThreadPoolExecutor(options.processes) as pool:
        found = list(pool.map(lambda job: run(root, folder, options.trials, *job), jobs))
    pairs = list(zip(found[::2], found[1::2], strict=True))
    print("seed    items: all     pruning   share   holdout objective: all    pruning   difference")
    for seed, (plain, saved) in enumerate(pairs):
        difference = saved.objective - plain.objective
        print(f"{seed:4} {plain.items:13,} {saved.items:11,} {saved.items / plain.items:7.1%} {plain.objective:24.4f} "
              f"{saved.objective:10.4f} {difference:+12.4f}")  # fmt: skip
    share = sum(saved.items for _, saved in pairs) / sum(plain.items for plain, _ in pairs)
    lost = statistics.mean(plain.objective - saved.objective for plain, saved in pairs)
    stderr = statistics.mean(plain.stderr for plain, _ in pairs)
    spread = statistics.stdev(plain.objective for plain, _ in pairs) if len(pairs) > 1 else math.nan
    print(f"items scored: {share:.1%} (limit {MOST:.1%})")
    print(f"objective lost: {lost:.4f}, its standard error by the items {stderr:.4f}, over the seeds "
          f"{spread / math.sqrt(len(pairs)):.4f}")  # fmt: skip
    return 0 if share <= MOST and lost <= stderr else 1


if __name__ == "__main__":
    sys.exit(main())
