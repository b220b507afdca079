"""What it costs to score one candidate: evomerge against lm-eval's own `simple_evaluate` and `HFLM`.

    python benchmarks/score.py [--tasks choice,rolling] [--threads 4] [--scale 0.5] [--json FILE]
    python benchmarks/score.py --device cuda --hidden 2048 --layers 16

A random Llama with 32,000 words (float32) and four tasks, made in a temporary folder or --work: 4-way multiple choice
behind 320 to 400 words, rolling loglikelihoods of paragraphs, minimal pairs, greedy generation of up to 64 words. The
same weights, items and batch size on both sides, each side a process of its own, in turns and never at the same time:

- evomerge: `Suite.score`, on a suite that was built once;
- lm-eval: `simple_evaluate` with one `HFLM` (batch_size given to it, softmax in float32), task objects built once,
  bootstrap_iters 0 and log_samples off; the shell commands with which it describes the machine are left out.

A first candidate warms both up; seconds are the best of --repeats. "memory" is the peak above what the process holds
before (VmHWM, or allocated on the device), over all candidates. "beyond" is the time outside of the model's own
`forward` in per cent of the time inside: padding, softmax, filters, metrics. "difference" is the largest between the
two sides' loglikelihoods, or the number of texts that differ. Exits with 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from _processes import Worker, WorkerError
from _score_tasks import TASKS, build_model, write_tasks
from rich.console import Console
from rich.table import Table

FASTER = {"choice": 3.0, "rolling": 1.0, "generation": 1.0}
"""How many times faster than lm-eval a task is meant to be."""
MEMORY = {"choice": 0.5}
"""The share of lm-eval's peak memory that it may take."""
BEYOND = 5.0
"""What a candidate may cost beyond its forward passes, over all tasks, in per cent of them."""
CLOSE = 1e-3
"""How far two loglikelihoods may differ."""
SIDES = ("evomerge", "lm-eval")


@dataclass
class Cost:
    """One side of a task: seconds of each candidate, those of them within `forward`, and the peak memory in bytes."""

    seconds: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def beyond(self) -> float:
        """Seconds outside of the forward passes, in the best candidate."""
        return min(s - f for s, f in zip(self.seconds, self.forward, strict=True) if s == self.best)


@dataclass
class Row:
    """A task, measured on both sides. `difference`: the largest of loglikelihoods; `texts`: how many differ."""

    task: str
    items: int
    ours: Cost
    theirs: Cost
    difference: float = 0.0
    texts: int = 0

    @property
    def faster(self) -> float:
        return self.theirs.best / self.ours.best

    @property
    def memory(self) -> float:
        return self.ours.peak / self.theirs.peak

    def missed(self) -> Iterator[str]:
        """The targets that are missed, in words."""
        if self.faster < FASTER.get(self.task, 0.0):
            yield f"{self.task}: {self.faster:.2f}x lm-eval's speed, at least {FASTER[self.task]:g}x is the target"
        if self.memory > MEMORY.get(self.task, float("inf")):
            yield f"{self.task}: {self.memory:.2f} of lm-eval's memory, at most {MEMORY[self.task]:g} is the target"
        if not self.difference <= CLOSE:
            yield f"{self.task}: loglikelihoods differ by {self.difference:.1e}, at most {CLOSE:g} is the target"
        if self.texts:
            yield f"{self.task}: {self.texts} texts differ"


def measure(workers: dict[str, Worker], task: str, items: int, repeats: int) -> Row:
    """All of one task: the comparison, which warms both sides up, then the candidates in turns."""
    found = {side: workers[side].ask(task=task, record=True)["items"] for side in SIDES}
    costs = {side: Cost() for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            answer = workers[side].ask(task=task)
            costs[side].seconds.append(answer["seconds"])
            costs[side].forward.append(answer["forward"])
            costs[side].peak = max(costs[side].peak, answer["peak"])
    row = Row(task, items, costs["evomerge"], costs["lm-eval"])
    row.difference, row.texts = compare(found["evomerge"], found["lm-eval"])
    return row


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, int]:
    """The largest difference of two loglikelihoods, and the number of texts that differ."""
    assert ours.keys() == theirs.keys()
    numbers, texts = [0.0], 0
    for item in ours:
        for mine, other in zip(ours[item], theirs[item], strict=True):
            if isinstance(mine, str):
                texts += mine != other
            else:
                a, b = (x[0] if isinstance(x, list) else x for x in (mine, other))
                numbers.append(abs(a - b))
    return max(numbers), texts


def table(rows: list[Row]) -> Table:
    """One line for each task."""
    found = Table(title="One candidate", title_justify="left")
    found.add_column("task (items)", no_wrap=True)
    for name in ("evomerge s", "lm-eval s", "faster", "memory MB", "lm-eval's", "share", "difference", "beyond"):
        found.add_column(name, justify="right")
    for row in rows:
        found.add_row(
            f"{row.task} ({row.items})",
            f"{row.ours.best:.2f}",
            f"{row.theirs.best:.2f}",
            _judged(row.faster, FASTER.get(row.task), "x", most=False),
            f"{row.ours.peak / 1e6:.0f}",
            f"{row.theirs.peak / 1e6:.0f}",
            _judged(row.memory, MEMORY.get(row.task), "", most=True),
            f"{row.texts} texts" if row.task == "generation" else f"{row.difference:.1e}",
            f"{100 * row.ours.beyond / (row.ours.best - row.ours.beyond):.1f} %",
        )
    return found


def _judged(value: float, target: float | None, unit: str, most: bool) -> str:
    shown = f"{value:.2f}{unit}"
    if target is None:
        return shown
    met = value <= target if most else value >= target
    return f"{shown} {'met' if met else 'MISSED'} ({'<=' if most else '>='} {target:g}{unit})"


def beyond(rows: list[Row]) -> float:
    """What a candidate costs beyond its forward passes, over all tasks, in per cent of them."""
    outside, whole = sum(row.ours.beyond for row in rows), sum(row.ours.best for row in rows)
    return 100 * outside / (whole - outside)


@contextlib.contextmanager
def working(options: argparse.Namespace, work: Path) -> Iterator[tuple[dict[str, Worker], dict[str, int]]]:
    """Both sides' processes, and the number of items of each task."""
    model = build_model(work / f"llama-{options.hidden}-{options.layers}", options.hidden, options.layers)
    counts = write_tasks(work / "tasks", options.scale, options.batch_size)
    environment = {
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(work / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    arguments = [str(model), str(work / "tasks"), str(options.batch_size), options.device, str(options.threads)]
    script = Path(__file__).parent / "_score_worker.py"
    with contextlib.ExitStack() as stack:
        started = {s: Worker(sys.executable, script, [s, *arguments], environment) for s in SIDES}
        yield {side: stack.enter_context(worker) for side, worker in started.items()}, counts


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="names, with commas between them")
    parser.add_argument("--hidden", type=int, default=384, help="width of the model, a multiple of 64")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0, help="times as many items")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--work", type=Path, help="where the model is built, and found the next time")
    parser.add_argument("--json", type=Path, help="write every single time here")
    options = parser.parse_args()
    options.tasks = options.tasks.split(",")
    unknown = [name for name in options.tasks if name not in TASKS]
    if unknown:
        parser.error(f"unknown tasks {unknown}; there are {', '.join(TASKS)}")
    if options.hidden % 64:
        parser.error(f"--hidden {options.hidden} is not a multiple of 64")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; leave --device out")
    return options


def main() -> int:
    options = parsed()
    console = Console(width=None if sys.stdout.isatty() else 160)
    rows = []
    with contextlib.ExitStack() as stack:
        work = (options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))).absolute()
        workers, counts = stack.enter_context(working(options, work))
        for task in options.tasks:
            try:
                rows.append(measure(workers, task, counts[task], options.repeats))
            except WorkerError as error:
                console.print(f"{task}: {error}", style="red", highlight=False)
                return 1
            print(f"{task}: {rows[-1].ours.best:.2f} s, lm-eval {rows[-1].theirs.best:.2f} s", file=sys.stderr)
    console.print(table(rows))
    spent = beyond(rows)
    console.print(f"beyond the forward passes, over all tasks: {spent:.1f} % (target: below {BEYOND:g} %)")
    missed = [line for row in rows for line in row.missed()]
    missed += [f"{spent:.1f} % beyond the forward passes"] if spent >= BEYOND else []
    for line in missed:
        console.print(f"MISSED {line}", style="red", highlight=False)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
