"""What a gradient step takes in memory beside the weights: planned from headers, held against what the tasks ask."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evomerge.checkpoints.headers import SIZES
from evomerge.merging.kernels.runner import pulling_bytes
from evomerge.merging.plan.jobs import Plan as MergePlan
from evomerge.optimize.declarations import uses_gradient
from evomerge.scoring.engine.activations import Dimensions, Extent, activation_bytes
from evomerge.study.prepare import Plan

_LENGTH = 1024
"""Tokens of the items that are planned for; how long they are is only known once the tasks are built."""


@dataclass(frozen=True)
class StepMemory:
    """`room`: the bytes that are kept free for a step on each device. `model` is None where the base's configuration
    does not tell its sizes under the usual keys."""

    model: Dimensions | None
    largest: int
    dtype: str
    room: float = math.inf

    @classmethod
    def of(cls, plan: Plan, merge: MergePlan, room: float = math.inf) -> StepMemory:
        dtype = plan.space.models.dtype
        largest = max((math.prod(job.shape) for job in merge.jobs.values()), default=0)
        try:
            return cls(Dimensions.of(plan.base.config, SIZES[dtype]), largest, dtype, room)
        except KeyError:
            return cls(None, largest, dtype, room)

    def bytes(self, batch: Extent, checkpointing: bool) -> int:
        """Activations, the largest parameter's gradient, and what it is pulled back with."""
        kept = activation_bytes(self.model, batch, checkpointing) if self.model else 0
        return kept + self.largest * SIZES[self.dtype] + pulling_bytes(self.largest)

    def is_tight(self, batch: Extent) -> bool:
        """Whether layers had better keep their inputs only, and run a second time."""
        return self.bytes(batch, checkpointing=False) > self.room


def planned_step(plan: Plan, merge: MergePlan) -> int:
    """The bytes of a step, by what is known from headers; 0 where no slopes are asked for. It is what checkpointed
    layers take: more is not needed."""
    spec = plan.spec
    if not uses_gradient(spec.optimizer["name"], spec.options):
        return 0
    tokens = plan.fitness.batch_size * _LENGTH
    return StepMemory.of(plan, merge).bytes(Extent(tokens, tokens, _LENGTH), checkpointing=True)
