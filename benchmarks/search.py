"""What is found with equal numbers of full evaluations: evomerge's default against what anyone would use instead.

    python benchmarks/search.py FOLDER [--seeds 10] [--processes 4] [--only real|known] [--out runs/search-benchmark]

(a) FOLDER is as in specialists.py: task arithmetic, a weight in [0, 1] for each of three sources and five layers; three
slices of bits per byte, 24 items on each split, with floors `of: base, margin: 0.02`. A seed deals the items and drives
the optimizer. (b) Problems with a known optimum (`_problems.py`), 10 to 200 genes, without and with noise.

Every row (`_rows.py`) is looked at after 25, 50, 100 and 200 evaluations: its five best by the search split, floors
first (also where it knows nothing of floors), are scored on the holdout split under the holdout's floors, and the best
feasible one of them is what it found. The rows that begin with the references (base, sources, average) pay for them,
the others get the floors for nothing. Finished runs in --out are not run again.

Exits with 1 where the default is not feasible in nine of ten seeds at 100, does not beat every other row, in the mean
of the paired differences and in most seeds, at 50, 100 and 200, or needs more than half of TPE's or mergekit-evolve's
evaluations to come within a tenth (with noise, a quarter) of the optimum.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _search_report as report
import numpy as np
from _problems import Problem
from _rows import OURS, PAY, ROWS

from evomerge.optimize.base import Optimizer, Start
from evomerge.optimize.ordering import rank_key
from evomerge.types import Genome, Outcome

BUDGETS = (25, 50, 100, 200)
TOP = 5
SIZES = ((2, 5), (3, 10), (4, 15), (4, 50))
NOISES = (0.0, 0.005)
LONGEST = 600
"""Evaluations in (b), to see when the others arrive."""

CLOSE = {0.0: 0.1, 0.005: 0.25}
"""Noise -> the share of the way from the base to the optimum that may be left at the target."""


@dataclass(frozen=True)
class Job:
    """One row on one problem with one seed; `size` and `noise` are those of (b), None in (a)."""

    row: str
    seed: int
    size: tuple[int, int] | None = None
    noise: float = 0.0

    @property
    def name(self) -> str:
        about = f"known-{self.size[0]}x{self.size[1]}-{self.noise:g}" if self.size else "real"
        return f"{about}-{self.row.replace(' ', '_')}-{self.seed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/search-benchmark"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=["real", "known"])
    options = parser.parse_args()
    out, folder = options.out.absolute(), options.folder.absolute()
    out.mkdir(parents=True, exist_ok=True)
    jobs = [job for job in _jobs(options.seeds) if options.only in (None, "known" if job.size else "real")]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes, each of which has one core
    started, found = time.perf_counter(), {}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        running = {pool.submit(result, job, out, folder): job for job in jobs}
        for done, future in enumerate(as_completed(running), 1):
            found[running[future]] = future.result()
            print(f"\r{done} of {len(jobs)} runs, {time.perf_counter() - started:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    met = []
    if options.only != "known":
        runs = {row: [found[Job(row, seed)]["gains"] for seed in range(options.seeds)] for row in ROWS}
        met.append(report.real(runs, BUDGETS))
    if options.only != "real":
        for noise in NOISES:
            for size in SIZES:
                print(f"\n{size[0] * size[1]} genes ({size[0]} sources, {size[1]} layers), noise {noise:g}")
                runs = {r: [found[Job(r, seed, size, noise)] for seed in range(options.seeds)] for r in ROWS}
                met.append(report.known(runs, BUDGETS, LONGEST, CLOSE[noise]))
    return 0 if all(met) else 1


def _jobs(seeds: int) -> Iterator[Job]:
    for seed in range(seeds):
        yield from (Job(row, seed) for row in ROWS)
    for size in SIZES:
        for noise in NOISES:
            for seed in range(seeds):
                yield from (Job(row, seed, size, noise) for row in ROWS)


def result(job: Job, out: Path, folder: Path) -> dict[str, Any]:
    """What `real` or `known` found, from --out if it is there."""
    file = out / f"{job.name}.json"
    if not file.is_file():
        found = known(job) if job.size else real(job, out / "files", folder)
        file.with_suffix(".part").write_text(json.dumps({**asdict(job), **found}))
        file.with_suffix(".part").rename(file)
    return dict(json.loads(file.read_text()))


def real(job: Job, root: Path, folder: Path) -> dict[str, Any]:
    """For each budget the gain over the base on the holdout split; None where nothing feasible was found."""
    from _specialists import Specialists  # torch takes seconds to import

    models = Specialists(root / str(job.seed) / job.row, folder, job.seed)
    paid = len(models.scored) if job.row in PAY else 0
    known = [(models.references[name].genome, outcome) for name, outcome in models.scored.items()]
    optimizer = ROWS[job.row](models.dimensions, job.seed, Start(references=models.references, known=known))
    trials = []
    for genome, outcome in driven(optimizer, lambda genome: models.outcome(genome, "search")):
        trials.append((genome, outcome))
        if len(trials) == BUDGETS[-1] - paid:
            break
    own = [*known, *trials] if job.row in PAY else trials
    gains = []
    for budget in BUDGETS:
        top = sorted(own[:budget], key=lambda trial: rank_key(trial[1]))
        merges = [genome for genome, _ in top if genome not in models.parents][:TOP]
        held = [models.outcome(genome, "holdout") for genome in merges]
        gains.append(max((o.objective - models.base_on_holdout for o in held if o.feasible), default=None))
    return {"gains": gains}


def known(job: Job) -> dict[str, Any]:
    """For each budget the regret, as a share of the way from the base to the optimum (None: not feasible), and the
    evaluations until no more than `CLOSE` of it is left for the first time."""
    assert job.size is not None
    problem, noise = Problem(*job.size, job.seed, job.noise), np.random.default_rng([job.seed, 5])
    paid = [(g, problem.observe(g, noise)) for g in problem.scored.values()] if job.row in PAY else []
    optimizer = ROWS[job.row](problem.dimensions, job.seed, Start(references=problem.references, known=paid))
    way = problem.best - problem.truth(problem.references["base"].genome).objective
    most = BUDGETS[-1] if job.row == OURS else LONGEST
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
    return {"regrets": [regrets[min(budget, len(regrets)) - 1] for budget in BUDGETS], "arrived": arrived}


def driven(optimizer: Optimizer, score: Callable[[Genome], Outcome]) -> Iterator[tuple[Genome, Outcome]]:
    """Genomes as they are asked, with what they scored."""
    while optimizer.exhausted is None:
        for genome in [optimizer.ask().genome for _ in range(optimizer.generation.askable)]:
            outcome = score(genome)
            yield genome, outcome
            optimizer.tell(genome, outcome)


if __name__ == "__main__":
    sys.exit(main())
