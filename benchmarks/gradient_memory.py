"""The peak memory of a gradient step, against the model, its sources and the activations of one micro-batch.

    python benchmarks/gradient_memory.py [--params 60M] [--sources 3] [--tokens 1024] [--out runs/gradient-memory]

Synthetic Llamas in bfloat16 (`_synthetic.py`). "activations" is the peak of a forward and a backward pass that drops
each parameter's gradient as soon as it is there, less the largest of these gradients; "step" is the peak of one that
pulls them back to the slopes of all merges (`merging.resident.slopes`). Both are counted by torch's profiler, after one
of each.
Exits with 1 where the model, its sources and the step take more than 1.1 times the model, its sources and the
activations.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from _synthetic import build
from torch.profiler import ProfilerActivity, profile

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from evomerge.scoring.engine.backward import loglikelihoods
from evomerge.scoring.engine.checkpointing import checkpointed

MOST = 1.1
METHODS = {"task_arithmetic": {}, "ties": {"density": 0.4}, "dare_ties": {"density": 0.6}, "della": {"density": 0.6}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="60M")
    parser.add_argument("--sources", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("runs/gradient-memory"))
    options = parser.parse_args()
    count = int(float(options.params.removesuffix("M")) * 1e6)
    base, *sources = build(options.out / options.params, count, options.sources)
    bank = SourceBank()
    resident = Resident(Checkpoint.open(str(base)), bank, "bfloat16")
    vocabulary = int(resident.model.config.vocab_size)
    tokens = torch.arange(options.tokens).remainder(vocabulary).reshape(-1, 256)
    met = True
    print(f"{'method':18}{'checkpointing':>14}{'weights':>10}{'activations':>13}{'step':>10}{'ratio':>8}")
    for method, values in METHODS.items():
        for saving in (False, True):
            inputs = tuple(Input(str(s), parameters={"weight": 0.3, **values}) for s in sources)
            resident.materialize(Recipe((Document(method, (Slice(inputs),), str(base), out_dtype="bfloat16"),)))
            weights = sum(p.nbytes for p in resident.model.parameters()) + bank.bytes()
            largest = max(p.nbytes for p in resident.model.parameters())
            plain = peak(lambda saving=saving: activations(resident.model, tokens, saving)) - largest
            pulls = resident.pulls()

            def step(pulls: Any = pulls, saving: bool = saving) -> None:
                with pulls.open():
                    loss(resident.model, tokens, saving).backward()
                pulls.slopes()

            whole = peak(step)
            ratio = (weights + whole) / (weights + plain)
            met &= ratio <= MOST
            cells = (f"{n / 1e6:.0f} MB" for n in (weights, plain, whole))
            print(f"{method:18}{saving!s:>14}" + "".join(f"{c:>{w}}" for c, w in zip(cells, (10, 13, 10), strict=True))
                  + f"{ratio:8.3f}")  # fmt: skip
    print(f"at most {MOST:g} of model, sources and activations: {met}")
    return 0 if met else 1


def loss(model: Any, tokens: torch.Tensor, saving: bool) -> torch.Tensor:
    with checkpointed(model) if saving else nullcontext():
        logits = model(tokens, use_cache=False).logits.flatten(0, 1)
        found = -loglikelihoods(logits, torch.arange(tokens.numel()), tokens.flatten()).mean()
        del logits
        return found


def activations(model: Any, tokens: torch.Tensor, saving: bool) -> None:
    handles = []
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        handles.append(parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)))
    loss(model, tokens, saving).backward()
    for handle in handles:
        handle.remove()
    model.requires_grad_(False)


def peak(run: Callable[[], None]) -> int:
    """Bytes, after a run that fills what is kept."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    now = most = 0
    for event in record.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


if __name__ == "__main__":
    sys.exit(main())
