"""Training as a neighbour of merging: the same items, seconds and floors for both.

    python benchmarks/training.py FOLDER [--out runs/training] [--table rule|wide|seconds] [--seeds 5] [--print]

FOLDER is as in specialists.py. Each slice has 4, 8, 32 or 128 items (as many as there are) to search or train on, and
64 others that decide. Rows: LoRA (PEFT) and full fine-tuning, each from the base, the uniform average and the best
source; coefficients of bands (`_bands.py`) by the same loop (`_fitting.py`); evomerge's default search, and its
`warm_start: gradient`. All share one process, one thread and one forward pass. Seconds are those of the processor, from
the first forward pass (for bands: from the singular value decomposition) to the winner, without the holdout's.

Prints the gain over the base on the holdout in bits per byte, mean of the slices, over the seeds, and in how many of
them all floors (`of: base, margin: 0`) are met there. Runs in --out are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

COUNTS = (4, 8, 32, 128)
SECONDS = {
    "specialists": {4: 12, 8: 12, 32: 30, 128: 60},
    "quickstart": dict.fromkeys(COUNTS, 3),
    "editions": dict.fromkeys(COUNTS, 3),
}
"""Testbed -> items a slice -> seconds of the processor."""

STARTS = ("base", "average", "best source")
DEFAULT, GRADIENT = "default search", "warm_start: gradient"
COEFFICIENTS = {"per tensor": 1, "8 bands": 8, "each direction": "each"}
TRAINED = tuple(f"{how} of the {start}" for how in ("LoRA", "all weights") for start in STARTS)
ROWS = (DEFAULT, GRADIENT, *COEFFICIENTS, *TRAINED)
RULE = (*COEFFICIENTS, "LoRA of the base")
RATES = {"LoRA": (1e-3, 3e-3, 1e-2), "all weights": (1e-4, 3e-4, 1e-3), "coefficients": (0.02, 0.06, 0.2)}


@dataclass(frozen=True)
class Job:
    bed: str
    row: str
    count: int
    seconds: float
    seed: int


def plan(table: str, seeds: int) -> Iterator[Job]:
    """The runs of a table: the rows that decide on bands, all rows, or all rows with more and fewer seconds."""
    for seed in range(seeds):
        for bed, seconds in SECONDS.items():
            if table == "rule":
                rows = RULE if bed == "specialists" else (*RULE, "LoRA of the average")
                yield from (Job(bed, row, count, seconds[count], seed) for count in COUNTS[:3] for row in rows)
            elif table == "wide":
                yield from (Job(bed, row, count, seconds[count], seed) for count in COUNTS for row in ROWS)
            else:
                yield from (Job(bed, row, 8, seconds[8] * share, seed) for share in (1, 2.5, 6) for row in ROWS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/training"))
    parser.add_argument("--table", choices=["rule", "wide", "seconds"], default="rule")
    parser.add_argument("--beds", default=",".join(SECONDS), help="those of the testbeds that run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", help="those that run, with commas between them")
    parser.add_argument("--items", help="those of the numbers of items that run, with commas between them")
    parser.add_argument("--print", action="store_true", help="print what is there, run nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "runs.jsonl"
    jobs = list(plan(options.table, options.seeds))
    beds, rows = options.beds.split(","), options.rows.split(",") if options.rows else ROWS
    counts = [int(count) for count in options.items.split(",")] if options.items else COUNTS
    chosen = [job for job in jobs if job.bed in beds and job.row in rows and job.count in counts]
    found = read(file)
    for job in () if options.print else chosen:
        if job not in found:
            found[job] = run(job, options.folder, options.out)
            with file.open("a") as lines:
                lines.write(json.dumps({**asdict(job), **found[job]}) + "\n")
            print(job, found[job], file=sys.stderr, flush=True)
    for bed in SECONDS:
        report(bed, {job: found[job] for job in chosen if job.bed == bed and job in found})
    return 0


def read(file: Path) -> dict[Job, dict[str, Any]]:
    """The runs that are there."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    names = Job.__dataclass_fields__
    return {Job(**{n: line[n] for n in names}): {k: v for k, v in line.items() if k not in names} for line in lines}


@cache
def testbed(name: str, folder: Path, out: Path) -> Any:
    from _testbeds import TESTBEDS

    return TESTBEDS[name](folder if name == "specialists" else out)


def run(job: Job, folder: Path, out: Path) -> dict[str, Any]:
    """One row with one seed: its gains, the floors, and what was chosen."""
    import torch
    from _merge_search import MergeSearch
    from _testbeds import scores

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    bed = testbed(job.bed, folder.absolute(), out.absolute())
    search, holdout = bed.deal(job.seed, job.count)
    started = time.process_time()
    if job.row in (DEFAULT, GRADIENT):
        found = MergeSearch(bed, search, job.seed, job.row == GRADIENT)
        trials = found.run(started + job.seconds)
        spent = time.process_time() - started
        weights, about = found.release(trials, holdout), {"trials": len(trials)}
    else:
        fitted = fitted_row(bed, job, search, started)
        spent = time.process_time() - started
        weights, about = fitted.weights, {"rate": fitted.rate, "step": fitted.step, "steps": fitted.steps}
    base = scores(bed.model, bed.base, holdout)
    gains = [b - v for b, v in zip(base, scores(bed.model, weights, holdout), strict=True)]
    return {"gain": statistics.mean(gains), "met": min(gains) >= 0, "gains": gains, "spent": round(spent, 2), **about}


def fitted_row(bed: Any, job: Job, search: Any, started: float) -> Any:
    """Training, or coefficients of bands by the same loop."""
    from _bands import Bands
    from _fitting import Coefficients, Full, Lora, best_start, fit

    if job.row in COEFFICIENTS:
        bands = Bands(bed.base, list(bed.sources.values()), COEFFICIENTS[job.row])
        number = len(bed.sources)
        plain = [
            [0.0] * number,
            [1 / number] * number,
            *([float(i == j) for j in range(number)] for i in range(number)),
        ]
        starts = [bands.alike(weights) for weights in plain]
        first = starts[best_start(bed, [bands.weights(c) for c in starts], search)]
        return fit(bed, lambda: Coefficients(bed, bands, first), RATES["coefficients"], search, started, job.seconds)
    how, _, start = job.row.partition(" of the ")
    tensors = beginning(bed, start, search)
    make = (lambda: Lora(bed, tensors)) if how == "LoRA" else (lambda: Full(bed, tensors))
    return fit(bed, make, RATES[how], search, started, job.seconds)


def beginning(bed: Any, start: str, search: Any) -> Any:
    """The weights that are trained on."""
    from _fitting import best_start

    if start == "base":
        return bed.base
    sources = list(bed.sources.values())
    if start == "average":
        return {name: sum(source[name] for source in sources) / len(sources) for name in bed.base}
    return sources[best_start(bed, sources, search)]


def report(bed: str, runs: dict[Job, dict[str, Any]]) -> None:
    """A row for each method, a column for each number of items and seconds."""
    columns = sorted({(job.count, job.seconds) for job in runs})
    if not columns:
        return
    print(f"\n{bed}: gain over the base on the holdout, bits per byte [standard deviation over seeds], floors met")
    print("| | " + " | ".join(f"{count} items, {seconds:g} s" for count, seconds in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for row in ROWS:
        cells = [
            cell([r for job, r in runs.items() if (job.row, job.count, job.seconds) == (row, *c)]) for c in columns
        ]
        if any(cells):
            print(f"| {row} | " + " | ".join(cells) + " |")


def cell(found: Sequence[dict[str, Any]]) -> str:
    if not found:
        return ""
    gains = [r["gain"] for r in found]
    spread = f" [{statistics.stdev(gains):.3f}]" if len(gains) > 1 else ""
    return f"{statistics.mean(gains):+.3f}{spread} {sum(r['met'] for r in found)}/{len(found)}"


if __name__ == "__main__":
    sys.exit(main())
