"""Bookkeeping of a search: everything that a trial costs besides its evaluation, with 100, 1,000 and 3,000 trials.

    python benchmarks/bookkeeping.py [--trials 100 1000 3000] [--rounds 3] [--out FOLDER]

A scorer that costs nothing takes the evaluator's place: scores are a function of the genome, and no model is loaded.
What is left are proposals, the store, the items' files, the leaderboard and `best.yaml`. Three kinds of search:

- `cma-es`: every candidate is scored on all items;
- `cma-es, pruning`: candidates race, as by default;
- `store`: the default optimizer's store part alone. Genomes are drawn at random in its place, as a Gaussian process
  grows with what it knows; candidates are scored on all items.

Each number of trials is a run in a process of its own. A trial's milliseconds are those of a run's last 100 trials (50
of a run of 100): the time that passes, and the processor's. Other work on the machine changes the first, so the second
is held to the limit. The runs are repeated in turn, and the median of `--rounds` rounds counts. Memory is the process's
own after the last trial. `status` is the whole command. Exits with 1 where a trial of the longest run takes more than
1.2 times the processor time of one of the shortest, where memory grows by more than a tenth, or `status` takes 2
seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _free import Answers, FreeExecutor, write_study
from _synthetic import build

KINDS = ("cma-es", "cma-es, pruning", "store")
SLICES, ITEMS = ("shipping", "refunds", "catalog"), 24
GROWTH, MEMORY, STATUS = 1.2, 1.1, 2.0


def write_files(folder: Path, kind: str) -> Path:
    """The search-space file of a kind of search, over small random checkpoints."""
    base, *sources = build(folder / "models", 1_000_000, 3)
    named = {f"source{i}": path for i, path in enumerate(sources)}
    optimizer = {"name": "cma-es", "seed": 0, "population": 12}
    fitness = {
        "pruning": kind.endswith("pruning"),
        "slices": {name: {"task": name, "metric": "acc", "floor": 0.2} for name in SLICES},
    }
    return write_study(folder, base, named, optimizer, 100, fitness)


class Close(FreeExecutor):
    """Scores genomes by how close they are to a point."""

    def __init__(self, plan: Any, items: int) -> None:
        super().__init__(plan, items)
        self._genes = [d.key for d in plan.space.dimensions]
        self.genomes: dict[str, Mapping[str, Any]] = {}

    def answers(self, job: Any) -> Answers:
        genome = self.genomes.get(job.recipe.id, {})
        far = {
            name: math.fsum((float(genome.get(key, 0.0)) - 0.3 - 0.1 * at) ** 2 for key in self._genes)
            for at, name in enumerate(SLICES)
        }
        return lambda name, place, _: ((place * 37 + SLICES.index(name) * 11) % 100) / 100 > far[name]


class Drawn:
    """Draws genomes at random, and learns nothing."""

    exhausted = None

    def __init__(self, dimensions: Any) -> None:
        from evomerge.optimize.base import Generation

        self.generation = Generation(1, 0, 1)
        self._dimensions, self._generator = dimensions, random.Random(0)

    def ask(self) -> Any:
        from evomerge.optimize.base import Proposal

        return Proposal({d.key: d.tidy(self._generator.uniform(d.low, d.high)) for d in self._dimensions})

    def tell(self, genome: Any, outcome: Any) -> None:
        pass


def measure(folder: Path, kind: str, trials: int) -> dict[str, float]:
    """Runs one search in this process."""
    import psutil

    from evomerge.optimize.build import build as build_optimizer
    from evomerge.study import loop
    from evomerge.study.observer import Observer
    from evomerge.study.prepare import make_plan
    from evomerge.study.run.folder import RunFolder
    from evomerge.study.run.manifest import Launch, write_launch
    from evomerge.study.run.store import Store, open_storage
    from evomerge.study.session import Session

    plan = make_plan(*Launch(str(write_files(folder, kind))).read())
    scorer = Close(plan, ITEMS)
    times: list[tuple[float, float]] = []

    class Watch(Observer):
        def trial_finished(self, trial: Any, leaderboard: Any) -> None:
            times.append((time.perf_counter(), time.process_time()))

    run = RunFolder(folder / f"{kind.replace(', ', '-')}-{trials}")
    with run.claim():
        facts = {"device": "none", "storage": None}
        write_launch(run, Launch("space.yaml"), plan.spec, plan.fitness, plan.checkpoints, scorer.digests, facts)
        store = Store.create(open_storage(run.journal, None, print), run.name, plan.space.dimensions)
        session = Session(run, store, plan, scorer, Watch())
        begin = session.begin

        def noted(proposal: Any, *generation: Any) -> Any:
            scorer.genomes[plan.space.recipe(proposal.genome).id] = proposal.genome
            return begin(proposal, *generation)

        session.begin = noted  # type: ignore[method-assign]

        def make(start: Any) -> Any:
            if kind == "store":
                return Drawn(plan.space.dimensions)
            name, seed = plan.spec.optimizer["name"], plan.spec.optimizer["seed"]
            return build_optimizer(name, plan.space.dimensions, seed, plan.spec.options, start)

        store.record("budget", {"trials": trials, "seconds": None})
        store.record("slices", {n: {"metric": "acc", "sign": 1, "weight": 1.0} for n in SLICES})
        loop.run(session, make, loop.Budget(trials))
    count = min(100, trials // 2)
    passed, processor = (1e3 * (times[-1][at] - times[-1 - count][at]) / count for at in range(2))
    memory = psutil.Process().memory_info().rss / 1e6
    return {"passed": passed, "ms": processor, "memory": memory, "status": status_seconds(run.path)}


def status_seconds(run: Path) -> float:
    """The best of three of the whole command."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "evomerge", "status", str(run)], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 3000])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where runs go (default: a temporary folder)")
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "TRIALS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, trials = options.measure
        print(json.dumps(measure(options.out, kind, int(trials))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        return report(options.out or Path(temporary), options.kinds, options.trials, options.rounds)


def report(out: Path, kinds: list[str], counts: list[int], rounds: int) -> int:
    print(f"{'':<18}{'trials':>8}{'ms a trial':>12}{'of processor':>14}{'memory, MB':>12}{'status, s':>11}")
    held = True
    for kind in kinds:
        measured: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
        for round_ in range(rounds):
            for count in counts:
                measured[count].append(run_measure(out / f"{round_}", kind, count))
        rows = [medians(measured[count]) for count in counts]
        for count, row in zip(counts, rows, strict=True):
            times = f"{row['passed']:>12.2f}{row['ms']:>14.2f}"
            print(f"{kind:<18}{count:>8}{times}{row['memory']:>12.0f}{row['status']:>11.2f}")
        growth, memory = (rows[-1][key] / rows[0][key] for key in ("ms", "memory"))
        holds = growth <= GROWTH and memory <= MEMORY and rows[-1]["status"] <= STATUS
        print(f"{kind}: {growth:.2f} times the processor time, {memory:.2f} times the memory: {holds}", flush=True)
        held &= holds
    print(f"at most {GROWTH} times, memory at most {MEMORY} times, status at most {STATUS:g} s: {held}")
    return 0 if held else 1


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def run_measure(out: Path, kind: str, trials: int) -> dict[str, float]:
    """Measures one search in a process of its own."""
    folder = out / f"{kind.replace(', ', '-')}-{trials}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--out", str(folder), "--measure", kind, str(trials)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    sys.exit(main())
