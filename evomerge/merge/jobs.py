"""What a plan is made of: models as a recipe sees them, and one job for every tensor of the merged model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.structure import Stack, is_head

COPY = "copy"
"""The method of tensors that are not of floating point: all models must agree on them (mergekit 0.1.5)."""


@dataclass(frozen=True)
class Read:
    """A stored tensor of a checkpoint (`model` is its resolved reference)."""

    model: str
    tensor: str


@dataclass(frozen=True, eq=False)
class Job:
    """How one output tensor is made.

    Attributes:
        tensor: the output's name.
        inputs: the merged tensors, without the base where the method subtracts it or starts from it.
        base: that base.
        parameters: the method's parameters by name: a tuple with one value for each input, or one value.
        work: the dtype that inputs are cast to and the result is rounded to; out: the dtype it is then cast to.
        seed: of random masks.
    """

    tensor: str
    method: str
    inputs: tuple[Operand, ...]
    base: Operand | None
    parameters: Mapping[str, Any]
    work: str
    out: str
    shape: tuple[int, ...]
    seed: int = 0


Operand = Read | Job


@dataclass(frozen=True)
class Tensor:
    """A tensor that a document can read: stored, or another document's output."""

    operand: Operand
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Model:
    """What a document sees of a model, be it a checkpoint or an earlier document."""

    reference: str
    config: dict[str, Any]
    stack: Stack
    tied: bool
    embedding: str | None
    tensors: dict[str, Tensor]

    def find(self, name: str) -> Tensor | None:
        """The tensor of that name; the head of a model with tied embeddings is its embeddings."""
        if name not in self.tensors and is_head(name) and self.tied and self.embedding:
            return self.tensors.get(self.embedding)
        return self.tensors.get(name)


@dataclass(frozen=True)
class Plan:
    """The merged model: its configuration, and the jobs of its tensors in the order in which they are written.

    `donor` is the checkpoint whose tokenizer and generation settings it takes; `checkpoints` are all that it reads.
    """

    config: dict[str, Any]
    jobs: dict[str, Job]
    stack: Stack
    tied: bool
    embedding: str | None
    donor: Checkpoint
    checkpoints: tuple[Checkpoint, ...] = field(repr=False)

    @property
    def elements(self) -> int:
        return sum(math.prod(job.shape) for job in self.jobs.values())
