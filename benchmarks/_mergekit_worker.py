"""Merges candidates with mergekit: `python _mergekit_worker.py DEVICE THREADS BASE SOURCE...` (see `_processes`).

Run by a Python that has mergekit. Does for a candidate what mergekit-evolve's in-memory evaluator does: plan, build the
executor's schedule, run it, copy each tensor into a model that is there already. The clock covers all of it.
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
from typing import Any

import torch
import yaml
from _processes import forget_peak, peak_memory, serve
from mergekit.architecture import arch_info_for_config
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor
from mergekit.io.lazy_tensor_loader import LazyTensorLoader
from mergekit.io.tasks import LoaderCache, ReturnTensor
from mergekit.merge import _model_out_config
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from safetensors.torch import save_file


class HeldLoader:
    """Stands where mergekit keeps its file readers, and has every tensor of a checkpoint in memory."""

    def __init__(self, path: str, device: str) -> None:
        files = LazyTensorLoader.from_disk(path)
        self.index = files.index
        self.tensors = {name: files.get_tensor(name, device=device).clone() for name in self.index.tensor_paths}

    def get_tensor(self, key: str, device: str = "cpu", **_: Any) -> torch.Tensor:
        return self.tensors[key].to(device)


class Mergekit:
    """mergekit's loader cache with every model in it, and a model to write into."""

    def __init__(self, device: str, models: list[str]) -> None:
        self.device = device
        self.options = MergeOptions(
            device=device, read_to_gpu=device == "cuda", low_cpu_memory=device == "cuda", quiet=True
        )
        cache = LoaderCache()
        cache.setup(self.options)
        self.held = {model: HeldLoader(model, device) for model in models}
        for model, loader in self.held.items():
            cache.loaders[ModelReference.parse(model)] = loader
        self.architecture = arch_info_for_config(ModelReference.parse(models[0]).config())
        self.parameters = {name: torch.empty_like(t) for name, t in self.held[models[0]].tensors.items()}
        forget_peak()  # of reading: the readers map the files beside what is held

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "recipe" not in request:
            return {"mergekit": importlib.metadata.version("mergekit"), "torch": torch.__version__}
        # Planning rewrites the configuration, so each candidate has its own.
        config = MergeConfiguration.model_validate(yaml.safe_load(request["recipe"]))
        self._wait()
        started = time.perf_counter()
        with torch.no_grad():
            self._merge(config)
        self._wait()
        seconds = time.perf_counter() - started
        peak = peak_memory()
        for name, tensor in self.parameters.items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"its {name} has NaN or Inf")
        if any(t._version for held in self.held.values() for t in held.tensors.values()):
            raise ValueError("it wrote into its sources")
        if request.get("save"):
            save_file({n: self.parameters[n].cpu() for n in request["names"]}, request["save"])
        return {"seconds": seconds, "peak": peak}

    def _merge(self, config: MergeConfiguration) -> None:
        out = _model_out_config(config, self.architecture)
        planner = MergePlanner(config, self.architecture, self.options, out)
        # MergePlanner.plan_in_memory does these two steps; its second fails in 0.1.5, since pydantic takes a merge task
        # (Task[Optional[Tensor]]) for no Task[Tensor]. Without that check the tasks are the same.
        planner._plan()
        tasks = [ReturnTensor.model_construct(weight_info=info, tensor_task=task, dtype=config.out_dtype)
                 for info, task in planner._tensors]  # fmt: skip
        executor = Executor(tasks, math_device=self.device, storage_device=self.device)
        for task, value in executor.run(quiet=True):
            self.parameters[task.weight_info.name].copy_(value, non_blocking=True)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    device, threads, *models = sys.argv[1:]
    torch.set_num_threads(int(threads))
    serve(Mergekit(device, models).answer)


if __name__ == "__main__":
    main()
