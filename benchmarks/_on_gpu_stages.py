"""One stage of `on_gpu.py`, in a process of its own: `python _on_gpu_stages.py NAME OPTIONS`, where OPTIONS is JSON.

Prints its figures, a line each, as soon as they are there. Exit code: 0 done, 1 a check failed, `SKIPPED` it does not
apply here, and the last line says why.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from _on_gpu_options import Options, say

_NO_CARD = "torch finds no CUDA device here"
SKIPPED = 3  # the exit code of a stage that does not apply here
_ROOT, _TESTS = Path(__file__).parents[1], "tests/merging/test_gpu.py"
_PACKAGES = ("torch", "triton", "transformers", "safetensors", "accelerate", "lm-eval", "datasets", "numpy", "pytest")


class Skip(Exception):
    """The stage does not apply here; the message says why."""


def environment(options: Options) -> bool:
    """The card, its driver and memory, the processor, versions; what takes longest to ask, last."""
    from evomerge.evaluator.device import host_memory

    if options.device == "cuda":
        _say_card()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    say(f"processor {model}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    memory, disk = host_memory(), shutil.disk_usage(options.work)
    free = [f"{count / 1e9:.1f} GB" for count in (memory.free, memory.total, disk.free)]
    say(f"host memory {free[0]} free of {free[1]}; disk {free[2]} free")
    say(f"Python {platform.python_version()}, {', '.join(f'{name} {_version(name)}' for name in _PACKAGES)}")
    compiler = shutil.which(os.environ.get("CC", "gcc")), shutil.which(os.environ.get("CXX", "g++"))
    say(f"compilers: C {compiler[0] or 'none'}, C++ {compiler[1] or 'none'} (without one, kernels stay plain torch)")
    git = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    say(f"evomerge at commit {commit or 'unknown'}")
    import torch

    say(f"torch uses {torch.get_num_threads()} threads, and was built for CUDA {torch.version.cuda}")
    if options.device == "cuda":
        if not torch.cuda.is_available():
            say(_NO_CARD)
            return False
        found = torch.cuda.get_device_properties(0)
        say(f"torch sees {found.name}, capability {found.major}.{found.minor}, {found.total_memory / 1e9:.1f} GB")
    return True


def _say_card() -> None:
    asked = "name,driver_version,memory.total,memory.used,clocks.max.sm,power.limit"
    try:
        smi = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
        for line in subprocess.run(smi, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines():
            say(f"card: {line} ({asked.replace(',', ', ')})")
    except (OSError, subprocess.SubprocessError) as error:
        say(f"nvidia-smi says nothing: {error}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def tests(options: Options) -> bool:
    """The tests marked `gpu`, each of which is said as it ends."""
    if importlib.util.find_spec("pytest") is None:
        raise Skip("pytest is not installed")
    # Not the project's own options, some of which need plugins
    words = ["-o", "addopts=", "-p", "no:cacheprovider", "-m", "gpu", "-v", "-rs", "--tb=short", "--gpu-device"]
    command = [sys.executable, "-m", "pytest", *words, options.device, _TESTS]
    return _streamed(command)


def _streamed(command: list[str]) -> bool:
    """Runs a command and says its lines as they come. Returns whether it went well."""
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip():
            say(line.rstrip().removeprefix(f"{_TESTS}::"))
    return process.wait() == 0


def vllm(options: Options) -> bool:
    """Generated answers of candidates: vLLM in place, vLLM made anew for each, lm-eval's own class, our decoder."""
    from evomerge.scoring.serving.choice import lacking

    if reason := lacking():
        raise Skip(reason)
    size = ["--params", "3M", "--items", "8", "--candidates", "2"] if options.toy else ["--params", "1B"]
    script = _ROOT / "benchmarks" / "generate.py"
    command = [sys.executable, str(script), str(options.work / "generate"), "--device", options.device, *size]
    return _streamed(command)


def stage(name: str) -> Callable[[Options], bool]:
    """What carries a stage out: it tells whether all checks held."""
    if name in ("materialize", "generation", "gradient"):
        if name != "materialize" and importlib.util.find_spec("lm_eval") is None:
            raise Skip("lm-eval is not installed")
        import _on_gpu_models

        found: Callable[[Options], bool] = getattr(_on_gpu_models, name)
        return found
    return {"environment": environment, "tests": tests, "vllm": vllm}[name]


def main() -> int:
    name, told = sys.argv[1], json.loads(sys.argv[2])
    options = Options(told["device"], told["toy"], Path(told["work"]))
    # Code that was compiled before would make a stage look fast
    os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{options.work}/compiled", "TRITON_CACHE_DIR": f"{options.work}/triton"}
    if options.device == "cuda" and name not in ("environment", "vllm"):
        import torch

        if not torch.cuda.is_available():
            say(_NO_CARD)
            return SKIPPED
    try:
        return 0 if stage(name)(options) else 1
    except Skip as reason:
        say(str(reason))
        return SKIPPED


if __name__ == "__main__":
    sys.exit(main())
