"""What is found with equal numbers of full evaluations: evomerge's default against what anyone would use instead.

    python benchmarks/search.py FOLDER [--seeds 0-9] [--processes 4] [--only real|accuracy|known] [--rows default ...]

(a) FOLDER is as in specialists.py: task arithmetic, a weight in [0, 1] for each of three sources and five layers; three
slices of bits per byte, 24 items on each split, with floors `of: base`, once for each --margin. (b) The quickstart's
models, right or wrong: three slices of 85 items on each split, floors of 0.90, a weight in [0, 1] for each of three
sources and two halves of the layers. (c) Problems with a known optimum (`_problems.py`), 10 to 200 genes (--genes),
without and with noise. In (a) and (b) a seed deals the items and drives the optimizer.

Every row (`_rows.py`) is looked at after 25, 50, 100 and 200 evaluations (up to --most): `_winner.py` says what it
found on the holdout split under the holdout's floors, by the same rule for all. The rows that begin with the references
(base, sources, average) pay for them, the others get the floors for nothing. BoTorch's stop at 48, and keep what they
have. Finished runs in --out are not run again; --report prints what is there, and runs nothing.

Exits with 1 where, in (a) and (b), the default has a winner in fewer than nine of ten seeds, its mean gain falls with
the budget, or another row is ahead of it at 50, 100 or 200 in the mean of the paired differences or in winners; or
where it needs, in (c), more than half of TPE's or mergekit-evolve's evaluations to come within a tenth (with noise, a
quarter) of the optimum.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _search_report as report
import numpy as np
from _problems import Problem
from _rows import LIMITED, OURS, PAY, ROWS

from evomerge.optimize.base import Optimizer, Start
from evomerge.optimize.ordering import rank_key
from evomerge.types import Genome, Outcome

BUDGETS = (25, 50, 100, 200)
MARGINS = (0.02, 0.0)
SIZES = ((2, 5), (3, 10), (4, 15), (4, 50))
NOISES = (0.0, 0.005)
LONGEST = 600
"""Evaluations in (c), to see when the others arrive."""

CLOSE = {0.0: 0.1, 0.005: 0.25}
"""Noise -> the share of the way from the base to the optimum that may be left at the target."""

SETUPS = ("real", "accuracy", "known")


@dataclass(frozen=True)
class Job:
    """One row with one seed: on the checkpoints of (a), with a `margin` below the base's scores, on those of (b), or on
    a problem of (c) with a `size` and `noise`. It ends after `most` evaluations."""

    setup: str
    row: str
    seed: int
    margin: float | None = None
    size: tuple[int, int] | None = None
    noise: float = 0.0
    most: int = BUDGETS[-1]

    @property
    def budgets(self) -> list[int]:
        return [budget for budget in BUDGETS if budget <= self.most]

    @property
    def name(self) -> str:
        about = f"-{self.margin:g}" if self.margin is not None else ""
        about = f"-{self.size[0]}x{self.size[1]}-{self.noise:g}" if self.size else about
        row = self.row.replace(",", "").replace(" ", "_")
        return f"{self.setup}{about}-{row}-{self.seed}"


def main() -> int:
    options = _options()
    out, folder = options.out.absolute(), options.folder.absolute()
    out.mkdir(parents=True, exist_ok=True)
    jobs = [job for job in _jobs(options.seeds, options.margin, options.genes) if job.row in options.rows]
    jobs = [job for job in jobs if options.only in (None, job.setup)]
    jobs = [job if job.row in LIMITED else replace(job, most=options.most) for job in jobs]
    budgets = [budget for budget in BUDGETS if budget <= options.most]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes, each of which has one core
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    started, found = time.perf_counter(), {}
    if options.report:
        found = {job: stored for job in jobs if (stored := _stored(job, out)) is not None}
    else:
        with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
            running = {pool.submit(result, job, out, folder): job for job in jobs}
            for done, future in enumerate(as_completed(running), 1):
                found[running[future]] = future.result()
                print(f"\r{done} of {len(jobs)} runs, {time.perf_counter() - started:.0f} s", end="", file=sys.stderr)
        print(file=sys.stderr)
    met = []
    for title, own in _tables(found):
        runs = {row: {job.seed: own[job] for job in own if job.row == row} for row in options.rows}
        runs = {row: seeds for row, seeds in runs.items() if seeds}
        first = next(iter(own))
        print(f"\n{title}")
        if first.setup == "known":
            met.append(report.known(runs, budgets, LONGEST, CLOSE[first.noise]))
        else:
            gains = {row: {seed: run["gains"] for seed, run in seeds.items()} for row, seeds in runs.items()}
            met.append(report.gains(gains, budgets))
    return 0 if all(met) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/search-benchmark"))
    parser.add_argument("--seeds", type=_seeds, default=range(10), metavar="A-B")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=SETUPS)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--margin", nargs="+", type=float, default=list(MARGINS))
    parser.add_argument("--genes", nargs="+", type=int, default=[s * n for s, n in SIZES])
    parser.add_argument("--most", type=int, choices=BUDGETS, default=BUDGETS[-1])
    parser.add_argument("--report", action="store_true")
    return parser.parse_args()


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _jobs(seeds: range, margins: list[float], genes: list[int]) -> Iterator[Job]:
    """A seed's checkpoints are opened once for all rows, if one process runs them."""
    for seed in seeds:
        for margin in margins:
            yield from (Job("real", row, seed, margin) for row in ROWS)
    for seed in seeds:
        yield from (Job("accuracy", row, seed) for row in ROWS)
    for size in SIZES:
        for noise in NOISES:
            for seed in seeds if size[0] * size[1] in genes else ():
                yield from (Job("known", row, seed, None, size, noise) for row in ROWS)


def _tables(found: dict[Job, Any]) -> Iterator[tuple[str, dict[Job, Any]]]:
    """The jobs of each table, with its title."""
    tables: dict[str, dict[Job, Any]] = {}
    for job, run in found.items():
        if job.size:
            title = f"{job.size[0] * job.size[1]} genes ({job.size[0]} sources, {job.size[1]} layers)"
            title += f", noise {job.noise:g}"
        else:
            title = f"checkpoints, floors: base, margin {job.margin:g}" if job.setup == "real" else "right or wrong"
        tables.setdefault(title, {})[job] = run
    yield from tables.items()


def _stored(job: Job, out: Path) -> dict[str, Any] | None:
    """What a job found, where it is in --out; None where it ended after fewer evaluations."""
    file = out / f"{job.name}.json"
    stored = dict(json.loads(file.read_text())) if file.is_file() else None
    return stored if stored and stored["most"] >= job.most else None


def result(job: Job, out: Path, folder: Path) -> dict[str, Any]:
    """What `merges` or `known` found, from --out if it is there."""
    stored = _stored(job, out)
    if stored is None:
        started = time.process_time()
        stored = {**asdict(job), **(known(job) if job.size else merges(job, out, folder))}
        stored["processor_seconds"] = round(time.process_time() - started, 1)
        part = out / f"{job.name}.part"
        part.write_text(json.dumps(stored))
        part.rename(out / f"{job.name}.json")
    return stored


@lru_cache(maxsize=1)
def _opened(setup: str, seed: int, out: Path, folder: Path) -> Any:
    import _checkpoints  # torch takes seconds to import

    root = out / "files" / f"{setup}-{seed}-{os.getpid()}"
    root.mkdir(parents=True, exist_ok=True)
    if setup == "real":
        return _checkpoints.specialists(root, folder, seed)
    return _checkpoints.quickstart(root, out / "quickstart", seed)


def merges(job: Job, out: Path, folder: Path) -> dict[str, Any]:
    """For each budget the gain over the base on the holdout split, None where nothing feasible was found; and all
    trials: genome, objective, margins."""
    from _checkpoints import Floored
    from _winner import winner

    models = Floored(_opened(job.setup, job.seed, out, folder), job.margin)
    paid = len(models.scored) if job.row in PAY else 0
    ours = job.row in PAY

    def score(genome: Genome) -> Outcome:
        return models.aimed(genome) if ours else models.outcome(genome, "search")

    known = [(models.references[name].genome, outcome) for name, outcome in models.scored.items()]
    known = [(genome, score(genome) if ours else outcome) for genome, outcome in known]
    start = Start(references=models.references, known=known)
    trials = []
    for genome, outcome in driven(ROWS[job.row](models.dimensions, job.seed, start), score):
        trials.append((genome, outcome))
        if len(trials) == job.most - paid:
            break
    own = [*known, *trials] if ours else trials
    found = [winner(own[:budget], models) for budget in job.budgets]
    return {
        "gains": [None if one is None else one[1].objective - models.base_on_holdout for one in found],
        "winners": [None if one is None else [trial[0] for trial in own].index(one[0]) for one in found],
        "trials": [[list(genome.values()), o.objective, list(o.margins)] for genome, o in own],
    }


def known(job: Job) -> dict[str, Any]:
    """For each budget the regret, as a share of the way from the base to the optimum (None: not feasible), and the
    evaluations until no more than `CLOSE` of it is left for the first time."""
    assert job.size is not None
    problem, noise = Problem(*job.size, job.seed, job.noise), np.random.default_rng([job.seed, 5])
    paid = [(g, problem.observe(g, noise)) for g in problem.scored.values()] if job.row in PAY else []
    optimizer = ROWS[job.row](problem.dimensions, job.seed, Start(references=problem.references, known=paid))
    way = problem.best - problem.truth(problem.references["base"].genome).objective
    most = job.most if job.row == OURS else LONGEST
    regrets: list[float | None] = []
    best, arrived = None, None
    for genome, outcome in chain(paid, driven(optimizer, lambda genome: problem.observe(genome, noise))):
        if best is None or rank_key(outcome) < rank_key(best[1]):
            best = genome, outcome
            truth = problem.truth(genome)
            met = outcome.feasible and all(margin >= -3 * job.noise for margin in truth.margins)
            regret = (problem.best - truth.objective) / way if met else None
        regrets.append(regret)
        if arrived is None and regret is not None and regret <= CLOSE[job.noise]:
            arrived = len(regrets)
        if len(regrets) >= most or (arrived is not None and len(regrets) >= BUDGETS[-1]):
            break
    return {"regrets": [regrets[min(budget, len(regrets)) - 1] for budget in job.budgets], "arrived": arrived}


def driven(optimizer: Optimizer, score: Callable[[Genome], Outcome]) -> Iterator[tuple[Genome, Outcome]]:
    """Genomes as they are asked, with what they scored."""
    while optimizer.exhausted is None:
        for genome in [optimizer.ask().genome for _ in range(optimizer.generation.askable)]:
            outcome = score(genome)
            yield genome, outcome
            optimizer.tell(genome, outcome)


if __name__ == "__main__":
    sys.exit(main())
