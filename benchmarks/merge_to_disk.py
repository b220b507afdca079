"""`evomerge merge` beside `mergekit-yaml`: the same recipe on the same shards, wall time and peak memory of each.

    python benchmarks/merge_to_disk.py --params 2B --sources 3

Builds Llama-shaped bfloat16 checkpoints of that size (a base, and fine-tunes of it), runs both programs on one recipe,
one after the other, and removes everything again. Before each run the checkpoints are dropped from the page cache, so
both read from the disk (`--warm`: both find them there). evomerge's time includes the fsync of what it wrote, mergekit
has none. Memory is the largest sum of resident memory over the program's processes, looked at every 20 ms (Linux).

mergekit 0.1.5 runs in an environment of its own: `--mergekit PYTHON`, or one that is installed into the work folder. To
be worked around: without `--no-write-model-card` it asks the hub, so it gets that flag and HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from _mergekit_env import install
from _synthetic import build, llama_config, shapes
from safetensors import safe_open

LIMIT = 3e9
PARAMETERS = {
    "linear": ({"weight": 0.4}, {}),
    "slerp": ({}, {"t": 0.4}),
    "task_arithmetic": ({"weight": 0.4}, {}),
    "ties": ({"weight": 0.4, "density": 0.6}, {}),
    "dare_ties": ({"weight": 0.4, "density": 0.6}, {}),
}


@dataclass(frozen=True)
class Run:
    """One program's run: wall time in seconds, peak memory in bytes."""

    seconds: float
    memory: int


def main() -> None:
    options = _options()
    work = Path(options.work or tempfile.mkdtemp(prefix="merge-to-disk-"))
    try:
        _compare(options, work)
    finally:
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)


def _compare(options: argparse.Namespace, work: Path) -> None:
    size = _count(options.params)
    _check_space(work, size, options.sources)
    mergekit = None if options.alone else Path(options.mergekit or install(work / "mergekit"))
    config = llama_config(size)
    elements = sum(torch.Size(shape).numel() for shape in shapes(config).values())
    print(f"{elements / 1e6:.0f} M parameters, {options.sources} sources, {options.method}, {options.threads} threads, "
          f"{platform.machine()}, torch {torch.__version__}", flush=True)  # fmt: skip
    models = build(work / "models", size, options.sources)
    recipe = work / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(options.method, models)))
    ours, theirs = work / "ours", work / "theirs"
    environment = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    runs: dict[str, list[Run]] = {"evomerge merge": [], "mergekit-yaml": []}
    for _ in range(options.repeats):
        command = [sys.executable, "-m", "evomerge", "merge", str(recipe), str(ours), "--overwrite"]
        runs["evomerge merge"].append(_measured(command, environment, models, options.warm))
        if mergekit:
            shutil.rmtree(theirs, ignore_errors=True)
            command = [str(mergekit), "-m", "mergekit.scripts.run_yaml", str(recipe), str(theirs),
                       "--no-write-model-card", "--random-seed", "7"]  # fmt: skip
            runs["mergekit-yaml"].append(_measured(command, environment, models, options.warm))
    _print(runs, elements * 2)
    if mergekit:
        print(f"largest difference of a sampled tensor's elements: {_difference(ours, theirs):.3g}")


def _recipe(method: str, models: list[Path]) -> dict[str, object]:
    base, *sources = models
    each, whole = PARAMETERS[method]
    sources = sources[:1] if method == "slerp" else sources
    listed = [{"model": str(source), **({"parameters": each} if each else {})} for source in sources]
    if method == "slerp":
        listed.append({"model": str(base)})
    lead = {} if method == "linear" else {"base_model": str(base)}
    return {"merge_method": method, **lead, "models": listed, "dtype": "bfloat16", "parameters": whole}


def _measured(command: list[str], environment: dict[str, str], models: list[Path], warm: bool) -> Run:
    os.sync()
    for file in [f for model in models for f in model.glob("*.safetensors")]:
        _load(file) if warm else _evict(file)
    started, most = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        while process.poll() is None:
            most = max(most, _resident(process.pid))
            time.sleep(0.02)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command[:4])} failed: {log.read()[-600:]}")
    return Run(time.perf_counter() - started, most)


def _resident(pid: int) -> int:
    """Bytes of memory of a process and its children."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0  # it ended meanwhile
    own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0)
    return own + sum(_resident(int(child)) for child in children)


def _evict(file: Path) -> None:
    handle = os.open(file, os.O_RDONLY)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def _load(file: Path) -> None:
    with file.open("rb", buffering=0) as stream:
        while stream.read(1 << 24):
            pass


def _print(runs: dict[str, list[Run]], written: int) -> None:
    best = {name: min(found, key=lambda run: run.seconds) for name, found in runs.items() if found}
    for name, run in best.items():
        most = max(r.memory for r in runs[name])
        told = f"{run.seconds:8.1f} s, {written / 1e6 / run.seconds:6.0f} MB/s written, peak {most / 1e9:.2f} GB"
        print(f"{name:15} {told} (best of {len(runs[name])}, largest peak)")
    ours = max(r.memory for r in runs["evomerge merge"])
    print(f"evomerge's peak is {'below' if ours < LIMIT else 'ABOVE'} {LIMIT / 1e9:.0f} GB")
    if len(best) == 2:
        ratio = best["mergekit-yaml"].seconds / best["evomerge merge"].seconds
        print(
            f"evomerge is {ratio:.1f} times as fast" if ratio >= 1 else f"evomerge is SLOWER, {ratio:.2f} times as fast"
        )


def _difference(ours: Path, theirs: Path) -> float:
    """Over one tensor of each kind."""
    found = [_tensors(folder) for folder in (ours, theirs)]
    assert found[0].keys() == found[1].keys(), "the outputs have the same tensors"
    names = [n for n in found[0] if ".layers." not in n or ".layers.0." in n]
    return max(float((_read(found[0][n], n).float() - _read(found[1][n], n).float()).abs().max()) for n in names)


def _tensors(folder: Path) -> dict[str, Path]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as stream:
            found |= dict.fromkeys(stream.keys(), file)
    return found


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as stream:
        tensor: torch.Tensor = stream.get_tensor(name)
    return tensor


def _check_space(work: Path, parameters: int, sources: int) -> None:
    work.mkdir(parents=True, exist_ok=True)
    need, free = parameters * 2 * (sources + 3) * 1.1 + 2e9, shutil.disk_usage(work).free
    if need > free:
        sys.exit(f"{work} needs about {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free; use --params or --work")


def _count(text: str) -> int:
    factor = {"M": 1e6, "B": 1e9}.get(text[-1].upper())
    return int(float(text[:-1]) * factor) if factor else int(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="2B", help="size of each checkpoint, such as 200M or 2B")
    parser.add_argument("--sources", type=int, default=3)
    parser.add_argument("--method", choices=PARAMETERS, default="ties")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--warm", action="store_true", help="checkpoints in the page cache, in place of on the disk only"
    )
    parser.add_argument("--mergekit", metavar="PYTHON", help="a Python that has mergekit 0.1.5 (default: installs one)")
    parser.add_argument("--alone", action="store_true", help="without mergekit")
    parser.add_argument("--work", metavar="DIR", help="keep models and outputs there, and use what is there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
