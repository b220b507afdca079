"""What runs inside vLLM's worker processes: it opens the sources, and merges each candidate tensor by tensor into the
model that the worker serves.

vLLM mixes the class into its own worker (`worker_extension_cls`), and its methods are called by name
(`collective_rpc`), with texts and numbers only. With several workers each merges whole tensors, of which vLLM keeps
the worker's part.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.pickled import allow_pickles
from evomerge.errors import EvomergeError
from evomerge.merging.kernels.compiled import Compiled
from evomerge.merging.kernels.digest import combined, tensor_record
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.execute import execute
from evomerge.merging.resident.placement import everywhere
from evomerge.recipe.mergekit import recipe_from_data
from evomerge.scoring.serving.process import end_with_engine


class CandidateWorker:
    """Methods that a worker of vLLM gets.

    Attributes:
        model_runner, device: the worker's own.
    """

    model_runner: Any
    device: torch.device

    def evomerge_open(self, references: list[str], keep: str, pickles: bool) -> list[str]:
        """Opens the sources, of which only headers are read.

        Args:
            references: of the checkpoints.
            keep: where their tensors stay once they are read: "device", "host", or "file" (nowhere else).
            pickles: whether pickled weights may be read.

        Returns:
            What is wrong, in a list of one, or nothing.
        """
        end_with_engine()
        allow_pickles(pickles)
        self.evomerge_compiled = Compiled()
        try:
            opened = [Checkpoint.open(reference) for reference in references]
        except EvomergeError as error:
            return [str(error)]
        placement = everywhere(str(self.device), opened) if keep == "device" else None
        self.evomerge_bank = SourceBank(keep != "file", placement)
        for checkpoint in opened:
            self.evomerge_bank.add(checkpoint)
        return []

    def evomerge_place(self, recipe: str) -> list[str]:
        """Merges a recipe (`recipe.to_data`, as JSON) into the model that is served. Returns its digest, and what went
        wrong, if anything did; then the model is a mixture."""
        records: list[str] = []
        self.evomerge_compiled.collect()
        try:
            planned = plan(recipe_from_data(json.loads(recipe)), self.evomerge_bank.open)
            merged = self._evomerge_merged(planned, records)
            self.model_runner.reload_weights(weights_iterator=merged, is_checkpoint_format=True)
            if self.device.type == "cpu":
                prepare_tied(self.model_runner.get_model())
        except Exception as error:  # one that is raised here would end the engine without its text
            return ["", f"{type(error).__name__}: {error}"]
        if len(records) < len(planned.jobs):
            return ["", f"vLLM has taken {len(records)} of {len(planned.jobs)} tensors"]
        return [combined(records)]

    def _evomerge_merged(self, planned: MergePlan, records: list[str]) -> Iterator[tuple[str, Tensor]]:
        """The merged tensors by their checkpoint names, each once it is needed; their lines of the digest are added."""
        runner = Runner(self.evomerge_compiled)
        for name, job in planned.jobs.items():
            tensor = execute(job, self.evomerge_bank, self.device, runner)
            records.append(tensor_record(name, tensor, runner))
            yield name, tensor


def prepare_tied(model: torch.nn.Module) -> None:
    """Has vLLM prepare layers again that share their weight with another one, such as a head that is the embeddings.

    On the CPU its kernels keep a packed copy of a weight. Reloading (vLLM 0.32) packs what is loaded, and a tied head
    is not: it would go on with the copy of the weights before.
    """
    layers = [layer for layer in model.modules() if isinstance(getattr(layer, "weight", None), Tensor)]
    shared = Counter(id(layer.weight) for layer in layers)
    for layer in layers:
        method: Any = getattr(layer, "quant_method", None)
        if shared[id(layer.weight)] > 1 and method is not None:
            method.process_weights_after_loading(layer)
