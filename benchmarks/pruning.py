"""What a search finds when it scores its candidates on a part of the items, against one that scores all on all.

    python benchmarks/pruning.py FOLDER [--trials 300] [--seeds 5] [--processes 2]
    python benchmarks/pruning.py --accuracies [--trials 100] [--seeds 10] [--optimizers default cma-es tpe]

FOLDER is as in specialists.py, and so is the search: task arithmetic, a weight for each source and layer, three slices
of bits per byte with floors relative to the base. Each seed runs twice, with `pruning: false` and with all
pruners. Prints for each run how many items were scored (search and holdout split, references included) and the winner's
objective on the holdout items; then the share of the items, and the difference of the objectives against the standard
error that the objective has by the scatter of the items. Finished runs in --out are not run again. Exits with 1 where
more than a third of the items was scored or the objectives differ by more than their standard error.

--accuracies: the quickstart's models (trained into --out once), 170 items a slice dealt in two halves, right or wrong,
floors of 0.90. Prints for each optimizer, with everything scored and with all pruners, how many seeds have a winner,
its mean objective on the holdout items, the items, and the seconds of the whole commands. Exits with 1 where pruning
loses a winner, or more than 0.003 of the mean objective over the seeds in which both have one, or saves no items, or
takes longer.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import _quickstart
from _searches import Ended, search
from specialists import write_files

from evomerge.study.run.items import read_items

MOST = 1 / 3


@dataclass(frozen=True)
class Outcome:
    """`objective`: the winner's on the holdout split; NaN where there is none."""

    items: int
    objective: float
    stderr: float
    seconds: float


def run(root: Path, folder: Path, trials: int, seed: int, pruning: bool) -> Outcome:
    """One search in a process of its own, unless it is there already."""
    place = root / f"{'pruning' if pruning else 'plain'}-{seed}"
    options = ["--seed", str(seed), *([] if pruning else ["--full"])]
    # By name: by itself a search may find that little is to be saved.
    options += ["--set", "fitness.pruning=true"] if pruning else []
    ended = search(place, lambda: write_files(place, folder, trials), *options)
    outcome = read(ended, place / "run")
    if math.isnan(outcome.objective):
        sys.exit(f"{place}: no candidate passes every floor; perhaps --trials {trials} are too few")
    return outcome


def read(ended: Ended, place: Path) -> Outcome:
    """The items that a finished run scored, by its records, and its winner on the holdout."""
    state = ended.status
    searched = sum(t.evaluated for t in state.search.trials)
    holdout = sum(len(read_items(place / "items", t.number, "holdout")) for t in ended.release.leaderboard.trials)
    if state.winner is None or state.winner.objective is None:
        return Outcome(searched + holdout, math.nan, math.nan, ended.seconds)
    errors = [error for error in state.winner.stderr.values() if error is not None]
    stderr = math.sqrt(math.fsum(e * e for e in errors)) / len(errors)
    return Outcome(searched + holdout, state.winner.objective, stderr, ended.seconds)


def accuracies(root: Path, trials: int, seeds: int, optimizers: list[str]) -> bool:
    """The second testbed; whether it holds. One search at a time: they are timed."""
    _quickstart.models(root)
    items = {domain: lines[: _quickstart.ITEMS] for domain, lines in _quickstart.items(root).items()}
    print("optimizer  pruning  winners  mean objective  in both        items  seconds", flush=True)
    holds = True
    for optimizer in optimizers:
        found: dict[bool, list[Outcome]] = {False: [], True: []}
        for seed in range(seeds):
            for pruning in found:
                place = root / f"{optimizer}-{'pruning' if pruning else 'plain'}-{seed}"
                write = partial(
                    _quickstart.write_files,
                    place,
                    root,
                    items,
                    _quickstart.OPTIMIZERS[optimizer],
                    trials,
                    pruning=pruning,
                )
                found[pruning].append(read(search(place, write, "--seed", str(seed)), place / "run"))
        both = [at for at in range(seeds) if not any(math.isnan(runs[at].objective) for runs in found.values())]
        shared = {pruning: [found[pruning][at].objective for at in both] for pruning in found}
        means = {pruning: statistics.mean(values) if values else math.nan for pruning, values in shared.items()}
        winners = {
            pruning: [r.objective for r in runs if r.objective == r.objective] for pruning, runs in found.items()
        }
        scored = {pruning: sum(run.items for run in runs) for pruning, runs in found.items()}
        seconds = {pruning: sum(run.seconds for run in runs) for pruning, runs in found.items()}
        for pruning, won in winners.items():
            mean = statistics.mean(won) if won else math.nan
            row = f"{optimizer:9}  {'all' if pruning else 'none':7}  {len(won):3} / {seeds}  {mean:14.4f}"
            print(f"{row}  {means[pruning]:7.4f}  {scored[pruning]:11,}  {seconds[pruning]:7.0f}", flush=True)
        holds &= len(winners[True]) >= len(winners[False]) and not means[False] - means[True] > 0.003
        holds &= scored[True] < scored[False] and seconds[True] <= seconds[False]
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--accuracies", action="store_true")
    parser.add_argument("--optimizers", nargs="+", choices=_quickstart.OPTIMIZERS, default=[*_quickstart.OPTIMIZERS])
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"))
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    root = options.out.absolute()
    if options.accuracies:
        return 0 if accuracies(root, options.trials or 100, options.seeds or 10, options.optimizers) else 1
    if options.folder is None:
        parser.error("give FOLDER or --accuracies")
    folder, trials = options.folder.absolute(), options.trials or 300
    jobs = [(seed, pruning) for seed in range(options.seeds or 5) for pruning in (False, True)]
    with ThreadPoolExecutor(options.processes) as pool:
        found = list(pool.map(lambda job: run(root, folder, trials, *job), jobs))
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
