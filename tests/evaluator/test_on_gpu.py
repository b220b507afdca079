"""The benchmark for a machine with a GPU, rehearsed without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

RUN = """
import json, sys
import on_gpu
commands = json.loads(sys.argv[1])
stages = [on_gpu.Stage(name, [sys.executable, "-c", code], weight) for name, code, weight in commands]
states = [each.state for each in on_gpu.run(stages, float(sys.argv[2]))]
print(json.dumps(states))
"""

HANGS = """
import pathlib, subprocess, sys, time
print("a figure", flush=True)
command = [sys.executable, "-c", "import time; time.sleep(600)"]
left = subprocess.Popen(command, start_new_session=True).pid
# One whose parent is gone, too
orphan = "import subprocess as s, sys; print(s.Popen(sys.argv[1:], stdout=s.DEVNULL, start_new_session=True).pid)"
gone = subprocess.run([sys.executable, "-c", orphan, *command], stdout=subprocess.PIPE, text=True).stdout
pathlib.Path({file!r}).write_text(f"{{left}} {{gone}}")
time.sleep(600)
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (BENCHMARKS, BENCHMARKS.parent)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=900, check=False
    )


def test_a_stage_that_takes_too_long_is_cut_and_the_rest_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    commands = [
        ["hangs", HANGS.format(file=str(file)), 1],
        ["breaks", "import sys; print('a number'); sys.exit('a reason')", 1],
        ["elsewhere", "import sys; print('no card'); sys.exit(3)", 1],
        ["holds", "print('another figure')", 1],
    ]
    started = time.monotonic()
    done = run("-c", RUN, json.dumps(commands), "16")
    *lines, states = done.stdout.splitlines()
    assert json.loads(states) == ["out of time", "FAILED", "skipped", "done"], done.stderr
    assert time.monotonic() - started < 300
    for line in (
        "stage hangs: a figure",
        "stage breaks: a number",
        "stage breaks: a reason",
        "stage holds: another figure",
    ):
        assert line in lines
    assert any(line.startswith("stage hangs: out of time: ended after its 4 s") for line in lines)
    assert any(line.startswith("stage elsewhere: skipped (no card)") for line in lines)
    pids = [int(word) for word in file.read_text().split()]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_what_no_time_is_left_for_is_said() -> None:
    done = run("-c", RUN, json.dumps([["late", "print('a figure')", 1]]), "0")
    assert "stage late: not begun: no time is left" in done.stdout
    assert "a figure" not in done.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["--only", "tests,tset"], "unknown stages tset"), (["--limit", "0"], "--limit 0 leaves no time")],
)
def test_what_it_is_asked_is_checked(words: list[str], complaint: str) -> None:
    done = run(str(BENCHMARKS / "on_gpu.py"), *words)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_models_have_fewer_layers_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from _drawn import fitting, shape, size  # type: ignore[import-not-found]

    whole = shape(4096, 11008, 32, 32, 32, 32_000)
    assert size(whole) == 13_476_831_232  # Llama 2 7B in bfloat16
    assert fitting(whole, 5, 5 * size(whole)) == whole
    cut = fitting(whole, 5, 30 * 10**9)
    layers = int(cut["num_hidden_layers"])
    assert 1 < layers < 32
    assert 5 * size(cut) <= 30 * 10**9 < 5 * size({**cut, "num_hidden_layers": layers + 1})
    assert fitting(whole, 5, 0)["num_hidden_layers"] == 1


@pytest.mark.slow
def test_a_rehearsal_prints_every_figure(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = run(str(BENCHMARKS / "on_gpu.py"), "--toy", "--device", "cpu", "--limit", "800", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    stages: dict[str, Any] = {each["name"]: each for each in json.loads(file.read_text())}
    states = {name: stage["state"] for name, stage in stages.items()}
    names = ("environment", "tests", "materialize", "generation", "gradient")
    assert states == dict.fromkeys(names, "done") | {"vllm": "skipped"}, done.stdout
    printed = done.stdout.splitlines()
    assert all(f"stage {name}: {line}" in printed for name, stage in stages.items() for line in stage["lines"])

    def says(name: str, *parts: str) -> bool:
        return any(all(part in line for part in parts) for line in stages[name]["lines"])

    assert says("environment", "processor")
    assert says("environment", "torch", "transformers", "lm-eval")
    assert says("tests", " passed")
    assert not says("tests", " failed")
    for method in ("linear", "slerp", "ties", "dare_ties"):
        assert says("materialize", f"{method}: first candidate")
        assert says("materialize", f"{method}: steady state", "x the copy")
        assert says("materialize", method, "peak")
        assert says("materialize", method, "equal digests")
    for dtype in ("float32", "bfloat16"):
        assert says("generation", f"{dtype}:", "s a candidate, HFLM")
        assert says("generation", f"{dtype} candidate 1", "equal scores" if dtype == "float32" else "scores")
    assert says("gradient", "step 1", "slopes; peak")
    assert says("gradient", "a gradient step takes")
    assert says("vllm", "vLLM is not installed") or says("vllm", "vllm in place")
    assert says("materialize", "parameters in bfloat16")
    assert not any("SCALED DOWN" in line for line in printed)
