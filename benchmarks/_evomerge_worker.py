"""Materializes candidates with evomerge: `python _evomerge_worker.py DEVICE THREADS BASE SOURCE...` (see `_processes`).

The clock covers `Resident.materialize`, from the recipe to parameters that are all written, digest included.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from _processes import peak_memory, serve
from safetensors.torch import save_file

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.evaluator.device import place_models
from evomerge.merging.kernels.compiled import Compiled
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident, as_it_is
from evomerge.merging.resident.rehearsal import rehearse
from evomerge.recipe.mergekit import parse_recipe

TYPICAL = "EVOMERGE_BENCHMARK_TYPICAL"
"""The environment variable with the recipe of a typical candidate."""


class Evomerge:
    """A bank with every model loaded, and one resident model."""

    def __init__(
        self, device: str, opened: Mapping[str, Checkpoint], dtype: str = "bfloat16", typical: str | None = None
    ) -> None:
        """`opened`: the base, then the sources, by their references. `dtype`: of the resident model. `typical`: the
        recipe of a candidate, whose kernels are compiled meanwhile, as a search does."""
        self.device = torch.device(device)
        started = time.perf_counter()
        first, base = next(iter(opened.items()))
        planned = plan(as_it_is(first, "bfloat16"), lambda reference, where: opened[reference])
        self.placement = place_models(planned, dtype, opened, device, None)
        bank, compiled = SourceBank(placement=self.placement), Compiled()
        for checkpoint in opened.values():
            bank.add(checkpoint)
        if typical is not None:
            merge = plan(parse_recipe(typical), lambda reference, where: opened[reference])
            rehearse(merge, opened.values(), device, compiled)
        for model in opened:
            bank.load(model)
        self.resident = Resident(base, bank, dtype, self.placement.room, compiled=compiled)
        compiled.wait()
        self._wait()
        self.load_seconds = time.perf_counter() - started

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("settle"):
            return {"seconds": self._time(self.resident.compiled.wait)}
        recipe = parse_recipe(request["recipe"])
        seconds = self._time(lambda: self.resident.materialize(recipe))
        peak = peak_memory()
        on_device = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        digest_seconds = self._time(self.resident.digest)
        if request.get("save"):
            parameters = self.resident.model.state_dict()
            save_file({n: parameters[n].cpu().contiguous() for n in request["names"]}, request["save"])
        return {
            "seconds": seconds,
            "digest_seconds": digest_seconds,
            "load_seconds": self.load_seconds,
            "peak": peak,
            "device_peak": on_device,
        }

    def _time(self, work: Any) -> float:
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> None:
    device, threads, *models = sys.argv[1:]
    torch.set_num_threads(int(threads))
    opened = {model: Checkpoint.open(model) for model in models}
    serve(Evomerge(device, opened, typical=os.environ.get(TYPICAL)).answer)


if __name__ == "__main__":
    main()
