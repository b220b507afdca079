"""All that wants a GPU, in one command of at most eight minutes.

    python benchmarks/on_gpu.py [--only materialize,generation] [--limit 480] [--json FILE]
    python benchmarks/on_gpu.py --toy --device cpu

Needs torch, transformers, safetensors, accelerate, lm-eval and the other packages of evomerge, pytest for the stage
`tests`, and no network: models are drawn, tasks are written here. Stages, one after the other:

- environment: card, driver, memory, versions;
- tests: those marked `gpu`: compiled kernels against plain torch; masks, digests and slopes against the CPU's; a model
  cut in two;
- materialize: TIES, DARE-TIES, linear and SLERP of a 7 B Llama and three fine-tunes (bfloat16; fewer layers where
  memory is short): first candidate, steady state, and a copy of the same models on the device;
- generation: candidates of 1 B on multiple choice and short written answers, against lm-eval's HFLM on the same
  weights: in float32, where answers have to be equal, and in bfloat16;
- gradient: gradient steps of the coefficients of such a merge;
- vllm: `generate.py` with a 1 B model: vLLM in place, vLLM made anew for each candidate, HFLM, the resident decoder.

Each is a process of its own, whose figures are printed as they come. It may take its part of what is left of --limit,
by the weights below; what a stage does not use is left to those behind it. One that takes longer is ended with all that
it started, and the next one begins. Exit code 1: a check failed, or a stage broke; not where time ran out.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

_HERE = Path(__file__).parent
WEIGHTS = {"environment": 4, "tests": 12, "materialize": 20, "generation": 10, "gradient": 5, "vllm": 1}
"""The parts of the time, in the order of the stages."""
SKIPPED = 3
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl
_LAST = 5  # lines of what a stage that broke wrote to stderr
_CLOSING = 5.0  # seconds of the limit that are kept for cleaning up and the table


@dataclass(frozen=True)
class Stage:
    """A command, and its part of the time."""

    name: str
    command: Sequence[str]
    weight: float


@dataclass
class Outcome:
    """What became of a stage: "done", "FAILED", "skipped", "out of time" or "not begun"; the seconds that it took and
    might have taken; the lines that it printed."""

    name: str
    state: str = "not begun"
    seconds: float = 0.0
    limit: float = 0.0
    lines: list[str] = field(default_factory=list)


def run(stages: Sequence[Stage], limit: float, json_file: Path | None = None) -> list[Outcome]:
    """Run the stages in at most so many seconds, together; their figures go to stdout as they come."""
    ends, outcomes = time.monotonic() + limit, [Outcome(stage.name) for stage in stages]
    _adopt_orphans()
    for i, (stage, outcome) in enumerate(zip(stages, outcomes, strict=True)):
        left = ends - time.monotonic()
        outcome.limit = left * stage.weight / sum(each.weight for each in stages[i:])
        if left > 0:
            _run(stage, outcome)
        said = {"skipped": f"skipped ({outcome.lines[-1] if outcome.lines else 'without a reason'})",
                "out of time": f"out of time: ended after its {outcome.limit:.0f} s; its figures so far stand",
                "not begun": "not begun: no time is left"}.get(outcome.state, outcome.state)  # fmt: skip
        _say(stage.name, f"{said} [{outcome.seconds:.1f} s of {outcome.limit:.0f} s]")
        if json_file:
            json_file.write_text(json.dumps([asdict(each) for each in outcomes], indent=1))
    return outcomes


def _run(stage: Stage, outcome: Outcome) -> None:
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            stage.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace"
        )
        reader = threading.Thread(target=_pass_on, args=(process, outcome), daemon=True)
        reader.start()
        try:
            code: int | None = process.wait(outcome.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_all()
        reader.join(_CLOSING)
        outcome.seconds = time.monotonic() - started
        outcome.state = {None: "out of time", 0: "done", SKIPPED: "skipped"}.get(code, "FAILED")
        if outcome.state == "FAILED":
            errors.seek(0)
            for line in errors.read().strip().splitlines()[-_LAST:]:
                _say(stage.name, line)
            if code not in (0, 1):
                _say(stage.name, f"exit code {code}")


def _pass_on(process: subprocess.Popen[str], outcome: Outcome) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        outcome.lines.append(line.rstrip())
        _say(outcome.name, outcome.lines[-1])


def _say(name: str, line: str) -> None:
    print(f"stage {name}: {line}", flush=True)


def _adopt_orphans() -> None:
    """Whatever loses its parent becomes a child of this process, which so knows all that a stage started."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _end_all() -> None:
    """End all that this process started, directly or not."""
    for _ in range(10):  # what ends may have started more
        found = psutil.Process().children(recursive=True)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=_CLOSING)
        if not found:
            return


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield f"{'stage':<14}{'seconds':>9}{'limit':>8}  state"
    for each in outcomes:
        yield f"{each.name:<14}{each.seconds:>9.1f}{each.limit:>8.0f}  {each.state}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="small models and few items: a rehearsal")
    parser.add_argument("--only", default=",".join(WEIGHTS), help="names of stages, with commas between them")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds in all")
    parser.add_argument("--work", type=Path, help="a folder for small files (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write all that was printed here, after each stage")
    options = parser.parse_args()
    wanted = options.only.split(",")
    unknown = [name for name in wanted if name not in WEIGHTS]
    if unknown:
        parser.error(f"unknown stages {', '.join(unknown)}; there are {', '.join(WEIGHTS)}")
    if not options.limit > 0:
        parser.error(f"--limit {options.limit:g} leaves no time")
    options.only = [name for name in WEIGHTS if name in wanted]
    return options


def main() -> int:
    options = parsed()
    # A job's end comes as SIGTERM: what was started ends with this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The project need not be installed
    path = [str(_HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(path)}
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(dir=options.work) as made:
        os.environ |= {"HF_DATASETS_CACHE": f"{made}/datasets", "EVOMERGE_CACHE": f"{made}/cache"}
        stages = []
        for name in options.only:
            work = Path(made, name)
            work.mkdir()
            told = json.dumps({"device": options.device, "toy": options.toy, "work": str(work)})
            stages.append(Stage(name, [sys.executable, str(_HERE / "_on_gpu_stages.py"), name, told], WEIGHTS[name]))
        outcomes = run(stages, max(1.0, options.limit - _CLOSING), options.json)
    print("\n".join(table(outcomes)), flush=True)
    return 1 if any(each.state == "FAILED" for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
