"""Run recipes through mergekit 0.1.5 and through evomerge, and compare every tensor.

    python benchmarks/mergekit_parity.py RECIPE.yml ... --mergekit VENV/bin/python
    python benchmarks/mergekit_parity.py --base MODELS/base --source MODELS/a MODELS/b --mergekit VENV/bin/python

The second form writes recipes of its own, with filters and gradients: each method that draws no random numbers, in one
slice and in two; and stages that a passthrough stacks (mergekit-multi). All carry `random_seed`, a key that mergekit
ignores. Without --mergekit, mergekit is installed into a virtual environment (--venv, kept for the next time).

Workarounds that mergekit 0.1.5 needs:
- it asks the hub about every model for its model card, and fails without a network after the weights are written:
  it is run with --no-write-model-card and HF_HUB_OFFLINE=1;
- models of a recipe are relative to the current folder: it is run from --cwd;
- mergekit-multi keeps stages that exist, so each recipe gets a fresh folder;
- mergekit-multi takes every text in a recipe that equals a stage's name for the stage: a stage called "ties" beside
  `merge_method: ties` fails as a circular dependency, so stages are called "stage-ties".

Exit code 1 where a tensor differs by more than --tolerance of its largest magnitude. The random masks of dare_* are
other ones in mergekit; such recipes are run, and their values are not compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.disk.stream import merge
from evomerge.recipe.mergekit import read_recipe, write_recipe
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.registry import METHODS

VERSION = "0.1.5"
_ONE = "from mergekit.scripts.run_yaml import main; main()"
_MULTI = "from mergekit.scripts.multimerge import main; main()"
_VALUES = {
    "weight": ({"filter": "mlp", "value": (0.3, 0.9)}, {"filter": "self_attn", "value": 0.55}, {"value": 0.41}),
    "density": ({"filter": "down_proj", "value": 0.7}, {"value": (0.35, 0.5)}),
    "scale": ({"filter": "o_proj", "value": 0.9}, {"value": 1.0}),
    "t": ({"filter": "mlp", "value": (0.1, 0.8)}, {"value": 0.37}),
    "lambda": 1.2,
}


def recipes(base: str, sources: list[str], seed: int = 3) -> dict[str, Recipe]:
    """A recipe for each deterministic method, in slices, and one of stages."""
    layers = Checkpoint.open(base).layers
    half = layers // 2
    spans = [(0, half), (half, layers)]
    plain = [name for name, method in METHODS.items() if not method.stochastic and name in _SUPPORTED]
    found = {name: Recipe((_document(name, base, sources, [(0, layers)], seed),)) for name in plain}
    found |= {f"{name}_slices": Recipe((_document(name, base, sources, spans, seed),)) for name in plain}
    stages = [_document(name, base, sources, spans, seed, f"stage-{name}") for name in ("ties", "linear")]
    stack = (Slice((Input("stage-ties", spans[0]),)), Slice((Input("stage-linear", spans[1]),)))
    found["stages"] = Recipe((*stages, Document("passthrough", stack, dtype="float32", seed=seed)))
    return found


_SUPPORTED = ("linear", "slerp", "task_arithmetic", "ties", "passthrough")


def _document(
    method: str, base: str, sources: list[str], spans: list[tuple[int, int]], seed: int, name: str | None = None
) -> Document:
    declared = METHODS[method]
    merged = sources[: int(min(len(sources), declared.sources[1]))]
    given = {p.name: (p.scope, _VALUES[p.name]) for p in declared.parameters if p.name in _VALUES}
    own = {n: value for n, (scope, value) in given.items() if scope == "source"}
    shared = {n: value for n, (scope, value) in given.items() if scope == "tensor"}
    listed = [] if declared.base == "ordinary" else [base]
    slices = tuple(
        Slice((*(Input(s, span, own) for s in merged), *(Input(b, span) for b in listed)), shared) for span in spans
    )
    return Document(method, slices, base if listed else None, dtype="float32", name=name, seed=seed)


def run_mergekit(python: Path, recipe: Path, out: Path, cwd: Path) -> float:
    """Merge with mergekit; returns the seconds, start-up included."""
    several = len(read_recipe(recipe).documents) > 1
    arguments = (
        [str(recipe), "--out-path", str(out), "-I", str(out.parent / "stages")] if several else [str(recipe), str(out)]
    )
    command = [
        str(python),
        "-c",
        _MULTI if several else _ONE,
        *arguments,
        "--no-write-model-card",
        "--random-seed",
        "7",
    ]
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"mergekit failed on {recipe}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def largest_difference(ours: Path, theirs: Path) -> tuple[float, str]:
    """The largest |a - b| / max |b| of all tensors, and the tensor's name."""
    a, b = Checkpoint.open(str(ours)), Checkpoint.open(str(theirs))
    if set(a.tensors) != set(b.tensors):
        raise SystemExit(f"other tensors: {sorted(set(a.tensors) ^ set(b.tensors))[:5]}")
    worst = (0.0, "")
    for name in b.tensors:
        x, y = a.tensor(name), b.tensor(name)
        if x.dtype != y.dtype or x.shape != y.shape:
            raise SystemExit(f"{name}: {x.dtype} {list(x.shape)} here, {y.dtype} {list(y.shape)} in mergekit's")
        scale = max(float(y.abs().max()), torch.finfo(torch.float32).tiny)
        worst = max(worst, (float((x.double() - y.double()).abs().max()) / scale, name))
    return worst


def install(folder: Path) -> Path:
    """A Python that has mergekit, in a virtual environment at `folder`."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", f"mergekit=={VERSION}"], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path)
    parser.add_argument("--base")
    parser.add_argument("--source", nargs="+", default=[])
    parser.add_argument("--mergekit", type=Path, help="a Python interpreter that has mergekit")
    parser.add_argument("--venv", type=Path, default=Path("mergekit-venv"), help="where to install mergekit otherwise")
    parser.add_argument("--cwd", type=Path, default=Path(), help="what model paths are relative to")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    options = parser.parse_args()
    python = (options.mergekit or install(options.venv)).absolute()
    files = [file.resolve() for file in options.recipes]
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        if options.base:
            sources = [str(Path(s).resolve()) for s in options.source]
            for name, recipe in recipes(str(Path(options.base).resolve()), sources).items():
                files.append(Path(scratch) / f"{name}.yml")
                files[-1].write_text(write_recipe(recipe), encoding="utf-8")
        os.chdir(options.cwd)
        for i, file in enumerate(files):
            folder = Path(scratch) / str(i)
            seconds = run_mergekit(python, file, folder / "mergekit", Path.cwd())
            started = time.perf_counter()
            merge(file, folder / "evomerge")
            mine = time.perf_counter() - started
            difference, tensor = largest_difference(folder / "evomerge", folder / "mergekit")
            random = any(METHODS[d.method].stochastic for d in read_recipe(file).documents)
            worst = worst if random else max(worst, difference)
            shown = "random masks, not compared" if random else f"{difference:.2e}  {tensor}"
            print(f"{file.stem:28s} mergekit {seconds:6.2f} s  evomerge {mine:6.2f} s  {shown}", flush=True)
    print(f"largest difference, relative to the tensor's largest magnitude: {worst:.2e}")
    return 0 if worst <= options.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
