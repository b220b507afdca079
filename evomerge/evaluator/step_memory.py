"""Memory of a gradient step beside the weights: planned from headers, compared with the batches of the tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evomerge.checkpoints.headers import SIZES
from evomerge.evaluator.models import OpenModels
from evomerge.merging.kernels.runner import pulling_bytes
from evomerge.merging.plan.jobs import MergePlan
from evomerge.optimize.declarations import uses_gradient
from evomerge.scoring.engine.activations import Dimensions, Extent, activation_bytes

_PLANNED_TOKENS = 1024
"""Tokens of an item in the plan. The real lengths are only known once the tasks are built."""


@dataclass(frozen=True)
class StepMemory:
    """Predicts the bytes of a gradient step.

    Attributes:
        model: sizes of the model; None where the base's configuration does not have them under the usual keys.
        largest: elements of the largest parameter.
        dtype: of the parameters.
        room: bytes that are kept free for a step on each device.
    """

    model: Dimensions | None
    largest: int
    dtype: str
    room: float = math.inf

    @classmethod
    def of(cls, models: OpenModels, merge: MergePlan, room: float = math.inf) -> StepMemory:
        dtype = models.space.models.dtype
        largest = max((math.prod(job.shape) for job in merge.jobs.values()), default=0)
        try:
            return cls(Dimensions.of(models.base.config, SIZES[dtype]), largest, dtype, room)
        except KeyError:
            return cls(None, largest, dtype, room)

    def bytes(self, batch: Extent, checkpointing: bool) -> int:
        """Activations, the largest parameter's gradient, and the buffers that pull it back."""
        kept = activation_bytes(self.model, batch, checkpointing) if self.model else 0
        return kept + self.largest * SIZES[self.dtype] + pulling_bytes(self.largest)

    def is_tight(self, batch: Extent) -> bool:
        """Whether layers had better keep their inputs only, and run a second time."""
        return self.bytes(batch, checkpointing=False) > self.room


def planned_step(models: OpenModels, batch_size: int, merge: MergePlan) -> int:
    """The bytes of a step with checkpointed layers, as far as headers tell; 0 where the optimizer needs no gradient."""
    spec = models.space.spec
    if not uses_gradient(spec.optimizer["name"], spec.options):
        return 0
    tokens = batch_size * _PLANNED_TOKENS
    return StepMemory.of(models, merge).bytes(Extent(tokens, tokens, _PLANNED_TOKENS), checkpointing=True)
