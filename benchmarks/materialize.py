"""How long one candidate takes to materialize: evomerge, mergekit 0.1.5 in memory, and a plain copy of the same bytes.

    python benchmarks/materialize.py --params 200M --sources 3 [--methods ties,slerp] [--threads 4] [--json FILE]
    python benchmarks/materialize.py --params 2B --device cuda
    python benchmarks/materialize.py --moe

Builds a Llama-shaped base and fine-tunes of it with random weights (bfloat16), in a temporary folder or --work. Then
for each method, in turns on one machine and never at the same time:

- evomerge materializes a first candidate, then others for --warm-up seconds, until all that it finds worth compiling is
  compiled, then --repeats more (a search's steady state). Each has values of its own for every parameter and layer, so
  that nothing can be kept that a search could not keep. Its process is fresh for each method and so is its folder of
  compiled code, as on a new machine.
- mergekit merges the same recipes in memory, in its own Python. Fewer repeats where one is slow; the count is shown.
- the copy: as many whole models as the method reads, one after the other, into one model that is there already.

Times are medians, without the first and the warm-up. "warm-up" is the time of these candidates, their number, and how
long the compiler had then to be waited for. The bandwidth of a merge is bytes read and written once, over its time;
that of the copy counts every copy's reads and writes. "peak" is VmHWM: Python and its libraries (0.5 GB or so), all
models as they are stored and the model that is written (2 GB for 10^9 parameters, each), and what the method needs
besides; compilers run in processes that are not counted. mergekit's is counted from when its models are loaded.

The output tensors of both are compared, so that the same work is timed: the share of elements within two units in the
last place (mergekit rounds after every step and breaks ties at a trim threshold by an unstable sort), and how far the
merges move from the base in the mean, which holds for random masks, too.

--moe: a mixture of 8 experts a layer, one stored tensor for each matrix of each, against the dense model of the same
size, in turns (TIES alone, unless --methods names others). Exits with 1 where it takes more than 1.3 times as long.

Without --mergekit, mergekit is installed into a virtual environment (--venv, kept for the next time). Workarounds for
mergekit 0.1.5:

- its in-memory evaluator (mergekit-evolve) lives in a Ray actor that asks for a GPU and imports lm-eval: planner and
  executor are driven here as that actor drives them, for which the base install is enough;
- its MergePlanner.plan_in_memory raises a TypeError (pydantic refuses its own merge task): the worker builds the same
  list of tasks without that check;
- it would read sources from memory-mapped files: a loader with all tensors in memory is put into its cache, which can
  only help it;
- planning rewrites its configuration: each candidate gets a fresh one, made before the clock starts;
- it asks the hub about models: HF_HUB_OFFLINE=1;
- arcee_fusion and ramplus_tl give float32: every recipe says out_dtype: bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _candidates import Candidate, candidate, methods
from _evomerge_worker import TYPICAL
from _mergekit_env import install
from _processes import Worker, WorkerError
from _results import Row, compare, table
from _synthetic import build, llama_config, shapes
from rich.console import Console
from safetensors.torch import load_file

_HERE = Path(__file__).parent
EXPERTS, MOST_MOE = 8, 1.3
"""Experts a layer of --moe, and the most that it may take, in times of the dense model."""

_SETTLED = 0.1
"""Seconds: to wait for fewer is to find that nothing is being compiled."""

_PATIENCE = 40.0
"""Seconds that mergekit may take for the repeats of one method; one repeat over 20 s is enough."""


class Copier:
    """Copies of whole models into one that is there already, on one device, with all threads."""

    def __init__(self, models: list[Path], device: str) -> None:
        self.device = torch.device(device)
        self.models = [[t.to(self.device, copy=True) for t in _tensors(model)] for model in models]
        self.target = [torch.empty_like(t) for t in self.models[0]]
        self.bytes = sum(t.numel() * t.element_size() for t in self.target)

    def time(self, count: int) -> float:
        """Seconds for `count` models."""
        started = self._now()
        for model in self.models[:count]:
            for target, source in zip(self.target, model, strict=True):
                target.copy_(source)
        return self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _tensors(folder: Path) -> Iterator[torch.Tensor]:
    for file in sorted(folder.glob("*.safetensors")):
        yield from load_file(file).values()


class Benchmark:
    """The models, the copies of them, and what starts a worker for each side."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.models = build(work / f"llama-{options.params}-{options.seed}", options.params, options.sources)
        self.names = _compared(options.params)
        self.base = {n: t for f in self.models[0].glob("*.safetensors") for n, t in load_file(f).items()
                     if n in self.names}  # fmt: skip
        self.copier = Copier(self.models, options.device)
        self.copier.time(len(self.models))

    def measure(self, method: str) -> Row:
        """Every time of one method. Raises WorkerError where evomerge fails."""
        options = self.options
        tried = [candidate(method, i, self.models[0], self.models[1:]) for i in range(options.repeats + 1)]
        row = Row(method, tried[0].models, tried[0].varies, self.copier.bytes)
        with self._evomerge(method) as ours, self._mergekit() as theirs:
            row.first = self._materialize(ours, tried[0], row, **self._save("ours", 0))
            self._warm_up(ours, row)
            if theirs is None:
                row.theirs_failed = "not measured"
            else:
                self._merge(theirs, tried[0], 0, row)
            for i, each in enumerate(tried[1:], 1):
                row.ours.append(self._materialize(ours, each, row))
                row.copies.append(self.copier.time(each.models))
                if theirs is not None and not row.theirs_failed and i <= _repeats(row.theirs[0], options.repeats):
                    self._merge(theirs, each, i, row)
        return row

    def _materialize(self, ours: Worker, each: Candidate, row: Row, **save: Any) -> float:
        answer = ours.ask(recipe=each.text, **save)
        row.load, row.peak, row.device_peak = (answer[k] for k in ("load_seconds", "peak", "device_peak"))
        row.digests.append(answer["digest_seconds"])
        return float(answer["seconds"])

    def _warm_up(self, ours: Worker, row: Row) -> None:
        """Other candidates, until evomerge has compiled what it finds worth compiling."""
        while sum(row.warm) < self.options.warm_up:
            each = candidate(row.method, -1 - len(row.warm), self.models[0], self.models[1:])
            row.warm.append(self._materialize(ours, each, row))
        row.waited = ours.ask(settle=True)["seconds"]
        self._materialize(ours, candidate(row.method, -1, self.models[0], self.models[1:]), row)

    def _merge(self, theirs: Worker, each: Candidate, number: int, row: Row) -> None:
        try:
            answer = theirs.ask(recipe=each.text, **self._save("theirs", number))
        except WorkerError as error:
            row.theirs_failed = str(error)
            return
        row.theirs.append(answer["seconds"])
        row.theirs_peak = answer["peak"]
        if number == 0:
            files = (load_file(self.work / f"{side}.safetensors") for side in ("ours", "theirs"))
            row.agreement = compare(row.method, self.base, *files)

    def _save(self, side: str, number: int) -> dict[str, Any]:
        """What asks for some tensors of the first candidate."""
        return {"save": str(self.work / f"{side}.safetensors"), "names": self.names} if number == 0 else {}

    @contextlib.contextmanager
    def _evomerge(self, method: str) -> Iterator[Worker]:
        with tempfile.TemporaryDirectory(dir=self.work) as compiled:
            typical = candidate(method, 0, self.models[0], self.models[1:]).text
            environment = {"TORCHINDUCTOR_CACHE_DIR": compiled, TYPICAL: typical}
            with self._worker(sys.executable, "_evomerge_worker.py", self.options.device, environment) as worker:
                yield worker

    @contextlib.contextmanager
    def _mergekit(self) -> Iterator[Worker | None]:
        device = self.options.mergekit_device
        if device is None:
            yield None
            return
        with self._worker(self.options.mergekit, "_mergekit_worker.py", device, {"HF_HUB_OFFLINE": "1"}) as worker:
            yield worker

    def _worker(self, python: Path | str, script: str, device: str, environment: dict[str, str]) -> Worker:
        threads = str(self.options.threads)
        arguments = [device, threads, *map(str, self.models)]
        return Worker(python, _HERE / script, arguments, {**environment, "OMP_NUM_THREADS": threads})


def against_dense(options: argparse.Namespace, work: Path) -> int:
    """A mixture of experts and the dense model of its size, in turns. Returns the exit code."""
    code = 0
    for method in options.methods or ["ties"]:
        with contextlib.ExitStack() as stack:
            sides = []
            for experts in (0, EXPERTS):
                folder = work / f"{'moe' if experts else 'llama'}-{options.params}-{options.seed}"
                models = build(folder, options.params, options.sources, options.seed, experts)
                threads = str(options.threads)
                compiled = stack.enter_context(tempfile.TemporaryDirectory(dir=work))
                environment = {"TORCHINDUCTOR_CACHE_DIR": compiled, "OMP_NUM_THREADS": threads}
                arguments = [options.device, threads, *map(str, models)]
                worker = Worker(sys.executable, _HERE / "_evomerge_worker.py", arguments, environment)
                sides.append((models, stack.enter_context(worker)))
            seconds: list[list[float]] = [[], []]
            for i in range(-1, options.repeats + 1):
                for (models, worker), times in zip(sides, seconds, strict=True):
                    started = time.perf_counter()
                    while True:
                        taken = worker.ask(recipe=candidate(method, i, models[0], models[1:]).text)["seconds"]
                        # Warm is what has nothing to compile any more, a candidate after the last was ready
                        if i >= 0 or (
                            time.perf_counter() - started > options.warm_up
                            and worker.ask(settle=True)["seconds"] < _SETTLED
                        ):
                            break
                    if i > 0:
                        times.append(taken)
        dense, moe = map(median, seconds)
        ratio = moe / dense
        code |= ratio > MOST_MOE
        print(f"{method}: {EXPERTS} experts a layer {moe:.3f} s, dense {dense:.3f} s: {ratio:.2f} times as long, "
              f"at most {MOST_MOE}")  # fmt: skip
    return code


def _repeats(first: float, most: int) -> int:
    """How often mergekit repeats after its first time: not at all where that is over 20 s."""
    wanted = min(most, int(_PATIENCE / first))
    return wanted if wanted > 1 else 0


def _compared(parameters: int) -> list[str]:
    """Some tensors of each shape class. Small matrices: over 10^6 elements, arcee_fusion draws a sample in mergekit."""
    config = llama_config(parameters)
    last = config["num_hidden_layers"] - 1
    names = ["layers.0.self_attn.k_proj", f"layers.{last}.self_attn.v_proj", f"layers.{last}.input_layernorm", "norm"]
    return [f"model.{name}.weight" for name in names]


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Where this runs, and what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    git = ["git", "-C", str(_HERE), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    config = llama_config(options.params)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": options.threads,
        "load before": round(os.getloadavg()[0], 1),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "commit": commit or "unknown",
        "parameters": sum(torch.Size(shape).numel() for shape in shapes(config).values()),
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "sources": options.sources,
        "repeats": options.repeats,
    }


def count(text: str) -> int:
    """200M, 1.5B or plain digits."""
    scale = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1:].upper(), 1)
    return int(float(text if scale == 1 else text[:-1]) * scale)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=count, default=count("200M"), help="size of a model, such as 200M")
    parser.add_argument("--sources", type=int, default=3)
    parser.add_argument("--methods", help="names, with commas between them; default: all")
    parser.add_argument("--moe", action="store_true", help="a mixture of experts against the dense model of its size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=float, default=20.0, help="seconds of candidates before those that count")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--mergekit", type=Path, help="a Python interpreter that has mergekit")
    parser.add_argument("--mergekit-device", choices=("cpu", "cuda"), help="default: cpu, and none with --device cuda")
    parser.add_argument("--venv", type=Path, default=Path("mergekit-venv"), help="where to install mergekit otherwise")
    parser.add_argument("--work", type=Path, help="where the models are built, and found the next time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every single time here")
    options = parser.parse_args()
    options.methods = options.methods.split(",") if options.methods else [] if options.moe else list(methods())
    unknown = [name for name in options.methods if name not in methods()]
    if unknown:
        parser.error(f"unknown methods {unknown}; there are {', '.join(methods())}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; leave --device out")
    if options.mergekit and not options.mergekit.is_file():
        parser.error(f"there is no {options.mergekit}; give a Python interpreter that has mergekit")
    if options.mergekit_device is None and options.device == "cpu":
        options.mergekit_device = "cpu"
    return options


def main() -> int:
    options = parsed()
    torch.set_num_threads(options.threads)
    if options.moe:
        with tempfile.TemporaryDirectory() as made:
            work = options.work or Path(made)
            work.mkdir(parents=True, exist_ok=True)
            return against_dense(options, work.absolute())
    if options.mergekit_device:
        options.mergekit = (options.mergekit or install(options.venv)).absolute()
    console = Console(width=None if sys.stdout.isatty() else 200)
    about, rows, failed = machine(options), [], []
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        benchmark = Benchmark(options, work.absolute())
        for method in options.methods:
            try:
                rows.append(benchmark.measure(method))
            except WorkerError as error:
                failed.append(f"{method}: {error}")
            else:
                print(f"{method}: {rows[-1].summary()}", file=sys.stderr, flush=True)
    console.print(table(rows, mergekit=options.mergekit_device is not None))
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), highlight=False)
    if rows:
        share = median(second for row in rows for second in row.digests)
        console.print(f"of each evomerge time, the digest over the parameters is {share:.3f} s", highlight=False)
    apart = [f"{r.method}: {r.agreement}" for r in rows if r.agreement and not r.agreement.holds]
    for line in [*(f"evomerge failed on {f}" for f in failed), *(f"other results in mergekit, {a}" for a in apart)]:
        console.print(line, highlight=False, style="red")
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "rows": [row.data() for row in rows]}, indent=1))
    return 1 if failed or apart else 0


if __name__ == "__main__":
    sys.exit(main())
