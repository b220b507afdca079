"""The source bank: every checkpoint of a run, opened once, each tensor read once and kept as it is stored."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.preflight import check_finite, check_head
from evomerge.errors import Where


T = TypeVar("T")


class SourceBank:
    """Checkpoints by reference, their tensors, and what was computed of these alone (histograms, inner products).

    No delta and no cast is kept beside the stored tensor: a method derives them while it runs.
    """

    def __init__(self, keep: bool = True) -> None:
        """`keep`: whether a tensor stays in memory once read. A search keeps; a single merge to disk does not."""
        self._keep = keep
        self._checkpoints: dict[str, Checkpoint] = {}
        self._tensors: dict[tuple[str, str], Tensor] = {}
        self._known: dict[Hashable, Any] = {}

    def add(self, checkpoint: Checkpoint) -> Checkpoint:
        """Use this opened checkpoint for its reference and its resolved reference."""
        known = self._checkpoints.setdefault(checkpoint.resolved(), checkpoint)
        self._checkpoints[checkpoint.reference] = known
        return known

    def open(self, ref: str, where: Where | None = None) -> Checkpoint:
        """The checkpoint of a reference, opened when it is first asked for. Raises InputError."""
        if ref not in self._checkpoints:
            self._checkpoints[ref] = self.add(Checkpoint.open(ref, where))
        return self._checkpoints[ref]

    def load(self, ref: str, where: Where | None = None) -> None:
        """Read all of a checkpoint's tensors now, so that damaged weights are found before a search starts.

        Raises:
            InputError: a tensor holds NaN or Inf, or the stored head of a tied model differs from its embeddings.
        """
        checkpoint = self.open(ref, where)
        for name in checkpoint.tensors:
            self.tensor(ref, name)

    def tensor(self, ref: str, name: str) -> Tensor:
        """A tensor as it is stored; callers must not write into it. Raises InputError where it is not finite."""
        checkpoint = self.open(ref)
        key = (checkpoint.resolved(), name)
        if key in self._tensors:
            return self._tensors[key]
        tensor = checkpoint.tensor(name)
        check_finite(checkpoint, name, tensor)
        if name == checkpoint.embedding:
            check_head(checkpoint, tensor)
        if self._keep:
            self._tensors[key] = tensor
        return tensor

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns for this key; made once if the bank keeps."""
        if not self._keep:
            return make()
        if key not in self._known:
            self._known[key] = make()
        found: T = self._known[key]
        return found

    def bytes(self) -> int:
        """How much memory the kept tensors take."""
        return sum(t.numel() * t.element_size() for t in self._tensors.values())


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name such as "bfloat16"."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
