"""What a search makes of 8 to 1,024 workers, in simulated time: the true loop, store, items and optimizer, and in the
workers' place a scorer that costs nothing.

    python benchmarks/cluster.py [--workers 8 64 256 1024] [--kinds ...] [--candidates 20] [--most 4000]
        [--sigma 0.5] [--mean 60] [--times FILE] [--stragglers 0.01] [--failures 0.002] [--driver wall]

An evaluation takes a log-normal time (`--mean` seconds, `--sigma`), some take five times as long (`--stragglers`), or
the times are drawn from a file (`--times`: a number a line, or a run's folder, whose trials' times are taken). A worker
dies with a chance of `--failures` in each job and needs a minute to load again; its job is run again, once, as the true
pool does. Three kinds of search, each with the default optimizer and its warm start:

- `generations`: as many candidates at a time as there are workers, each scored on all items; the next ones are asked
  when all of these have ended;
- `racing`: the same, and candidates that fall behind on part of the items are dropped;
- `asynchronous`: the next candidate is asked as soon as a worker is free.

Each worker gets `--candidates` of them, `--most` in all. The driver's own time is charged as it is measured (`--driver
wall`; `processor`: without what it waits for other programs of this machine; `none`).

Printed: the share of the workers' time that is work, "searching" (from the first candidate after the known models to
the beginning of the last one) and "whole" (references, known models and the last candidates included); the simulated
hours; the driver's milliseconds a trial, over the second half of the trials, and how many it feeds a second; and the
regret (what the best candidate of the search lacks to the optimum; 1 is where the base stands) at a quarter, half, and
the end of the asynchronous search's time. Exits with 1 where, at 64 workers, the asynchronous search uses less than
95 % of the workers' time while it is searching, or the driver feeds fewer than 100 trials a second in it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from _synthetic import build
from _virtual import Clock, Times, VirtualPool

KINDS = ("generations", "racing", "asynchronous")
SLICES, ITEMS = ("shipping", "refunds", "catalog"), 24
CHARGED = {"wall": time.perf_counter, "processor": time.process_time, "none": None}
USED, FED, AT = 0.95, 100.0, 64


def write_files(folder: Path, kind: str, trials: int) -> Path:
    """The search-space file of a kind of search: 18 weights of small random checkpoints."""
    base, *sources = build(folder / "models", 1_000_000, 3)
    space = {
        "base": str(base),
        "sources": {f"source{i}": str(path) for i, path in enumerate(sources)},
        "layers": 2,
        "modules": {"attention": "self_attn", "mlp": "mlp"},
        "genes": {
            "method": "task_arithmetic",
            "weight": {"low": 0.0, "high": 1.0, "init": 0.4, "per": ["sources", "layers", "modules"]},
        },
        "optimizer": {"asynchronous": kind == "asynchronous"},
        "budget": {"trials": trials},
        "fitness": "fitness.yaml",
    }
    fitness = {
        "pruning": ["racing"] if kind == "racing" else False,
        "slices": {name: {"task": name, "metric": "acc", "floor": 0.05} for name in SLICES},
    }
    for file, data in (("space.yaml", space), ("fitness.yaml", fitness)):
        (folder / file).write_text(yaml.safe_dump(data, sort_keys=False))
    return folder / "space.yaml"


class Problem:
    """How good a genome is: the squared distance to an optimum, in which genes count differently."""

    def __init__(self, dimensions: Any) -> None:
        self._keys = [d.key for d in dimensions]
        self._best = {key: 0.15 + 0.7 * (7 * at % 11) / 11 for at, key in enumerate(self._keys)}
        self._counts = {key: 2.0 ** -(at % 5) for at, key in enumerate(self._keys)}
        self._base = self._far({})
        self.genomes: dict[str, Any] = {}

    def _far(self, genome: Any) -> float:
        return math.fsum(self._counts[key] * (float(genome.get(key, 0.0)) - self._best[key]) ** 2 for key in self._keys)

    def regret(self, genome: Any) -> float:
        return self._far(genome) / self._base

    def right(self, job: Any, name: str) -> float:
        """The share of any slice's items that a job's candidate answers."""
        return 1.0 - 0.8 * min(1.0, self.regret(self.genomes.get(job.recipe.id, {})))


def measure(folder: Path, kind: str, workers: int, trials: int, times: Times, charged: str) -> dict[str, Any]:
    """Runs one search in this process."""
    from evomerge.optimize.base import Reason
    from evomerge.optimize.build import build as build_optimizer
    from evomerge.study import loop
    from evomerge.study.observer import Observer
    from evomerge.study.prepare import make_plan
    from evomerge.study.run.folder import RunFolder
    from evomerge.study.run.manifest import Launch, write_launch
    from evomerge.study.run.store import Store, open_storage
    from evomerge.study.session import Session

    plan = make_plan(*Launch(str(write_files(folder, kind, trials))).read())
    problem, clock = Problem(plan.space.dimensions), Clock(CHARGED[charged])
    pool = VirtualPool(plan, ITEMS, workers, times, clock, problem.right)
    best: list[tuple[float, float]] = []
    spent: list[float] = []
    begun: list[tuple[float, bool]] = []

    class Watch(Observer):
        def trial_finished(self, trial: Any, leaderboard: Any) -> None:
            now = clock.stop()  # what is looked at here is no work of the driver's
            spent.append(clock.driver)
            leading = leaderboard.best()
            if leading is not None and trial.kind == "search":
                best.append((now, problem.regret(leading.genome)))
            clock.go(now)

    run = RunFolder(folder / "run")
    with run.claim():
        facts = {"device": "none", "storage": None}
        write_launch(run, Launch("space.yaml"), plan.spec, plan.fitness, plan.checkpoints, pool.digests, facts)
        store = Store.create(open_storage(run.journal, None, print), run.name, plan.space.dimensions)
        session = Session(run, store, plan, pool, Watch())
        begin = session.begin

        def noted(proposal: Any, *generation: Any) -> Any:
            trial = begin(proposal, *generation)
            problem.genomes[trial.recipe_id] = proposal.genome
            begun.append((clock.now(), proposal.reason in (Reason.REFERENCE, Reason.SOUP)))
            return trial

        session.begin = noted  # type: ignore[method-assign]

        def make(start: Any) -> Any:
            name, seed, options = plan.spec.optimizer["name"], plan.spec.optimizer["seed"], plan.spec.options
            asynchronous = plan.spec.asynchronous
            return build_optimizer(name, plan.space.dimensions, seed, options, start, asynchronous, num_workers=workers)

        store.record("budget", {"trials": trials, "seconds": None})
        store.record("slices", {n: {"metric": "acc", "sign": 1, "weight": 1.0} for n in SLICES})
        clock.go()
        loop.run(session, make, loop.Budget(trials))
    known = max(at for at, (_, is_known) in enumerate(begun) if is_known)
    first, last, end = begun[known + 1][0], begun[-1][0], max(end for _, end in pool.busy)
    half = len(spent) // 2
    driver = (spent[-1] - spent[half]) / (len(spent) - 1 - half) if charged != "none" else math.nan
    return {
        "searching": pool.utilisation(first, last),
        "whole": pool.utilisation(0.0, end),
        "known": first,
        "seconds": end,
        "driver": driver,
        "best": best,
    }


def read_times(place: Path) -> list[float]:
    """The seconds of evaluations in a file, a number a line, or those of a run's trials."""
    if place.is_file():
        return [float(line) for line in place.read_text().split()]
    import evomerge

    trials = evomerge.status(str(place)).search.trials
    return [t.seconds["total"] for t in trials if t.state == "complete" and t.duplicate_of is None]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--candidates", type=int, default=20, help="of each worker")
    parser.add_argument("--most", type=int, default=4000, help="candidates in all")
    parser.add_argument("--mean", type=float, default=60.0)
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--times", type=Path)
    parser.add_argument("--stragglers", type=float, default=0.01)
    parser.add_argument("--failures", type=float, default=0.002)
    parser.add_argument("--driver", choices=CHARGED, default="wall")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "KIND", "WORKERS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, kind, workers = options.measure
        recorded = read_times(options.times) if options.times else ()
        mean = sum(recorded) / len(recorded) if recorded else options.mean
        times = Times(recorded, mean, options.sigma, options.stragglers, failures=options.failures)
        trials = min(options.candidates * int(workers), options.most)
        print(json.dumps(measure(Path(folder), kind, int(workers), trials, times, options.driver)))
        return 0
    return report(options)


def report(options: Any) -> int:
    words = ("driver, ms", "trials/s", "regret at 1/4", "1/2", "end")
    print(f"{'workers':>7} {'':<13}{'searching':>10}{'whole':>8}{'hours':>8}", *(f"{w:>13}" for w in words))
    held = True
    for workers in options.workers:
        rows = {kind: run_measure(kind, workers) for kind in options.kinds}
        horizon = rows.get("asynchronous", next(iter(rows.values())))["seconds"]
        for kind, row in rows.items():
            regrets = (regret_at(row["best"], share * horizon) for share in (0.25, 0.5, 1.0))
            shares = f"{row['searching']:>10.1%}{row['whole']:>8.1%}{row['seconds'] / 3600:>8.2f}"
            driver = f"{1e3 * row['driver']:>13.1f} {1 / row['driver']:>13.0f}"
            print(f"{workers:>7} {kind:<13}{shares} {driver}", *(f"{r:>13.4f}" for r in regrets), flush=True)
        if workers == AT and "asynchronous" in rows:
            row = rows["asynchronous"]
            held = row["searching"] >= USED and not 1 / row["driver"] < FED
    print(f"asynchronous at {AT} workers: {USED:.0%} of their time, {FED:g} trials a second: {held}")
    return 0 if held else 1


def regret_at(best: list[list[float]], seconds: float) -> float:
    """Of the best candidate at that time."""
    return next((regret for at, regret in reversed(best) if at <= seconds), math.nan)


def run_measure(kind: str, workers: int) -> dict[str, Any]:
    """Measures one search in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", folder, kind, str(workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    sys.exit(main())
