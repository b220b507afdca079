"""The source bank: every checkpoint of a run, opened once, each tensor read once and kept as it is stored, where the
placement plan wants it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.preflight import check_finite, check_head
from evomerge.errors import InputError, Where
from evomerge.merging.resident.placement import FILE, HOST, SLAB, Placement, tensor_key

T = TypeVar("T")
_ALIGNED = 512  # bytes


class SourceBank:
    """Checkpoints by reference, their tensors, and what was computed of these alone (histograms, inner products).

    No delta and no cast is kept beside the stored tensor: a method derives them while it runs.
    """

    def __init__(self, keep: bool = True, placement: Placement | None = None) -> None:
        """`keep`: whether a tensor stays in memory once read. A search keeps; a single merge to disk does not. What
        `placement` does not know stays in its file, mapped."""
        self._keep, self._placement = keep, placement
        self._pinned = Slabs() if placement is not None and placement.pinned else None
        self._checkpoints: dict[str, Checkpoint] = {}
        self._tensors: dict[Hashable, Tensor] = {}
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

    def load(self, ref: str, where: Where | None = None, progress: Callable[[int], None] | None = None) -> None:
        """Read all of a checkpoint's tensors now, so that damaged weights are found before a search starts.

        `progress` is told the bytes of each tensor that is in its place.

        Raises:
            InputError: a tensor holds NaN or Inf, or the stored head of a tied model differs from its embeddings.
        """
        checkpoint = self.open(ref, where)
        for name, info in checkpoint.tensors.items():
            self.tensor(ref, name)
            if progress:
                progress(info.bytes)

    def tensor(self, ref: str, name: str) -> Tensor:
        """A tensor as it is stored, where it lives; callers must not write into it.

        Raises:
            InputError: it is not finite, or its device ran out of memory.
        """
        checkpoint = self.open(ref)
        key = tensor_key(checkpoint, name)
        if key in self._tensors:
            return self._tensors[key]
        home = FILE if self._placement is None else self._placement.home(checkpoint, name)
        tensor = checkpoint.tensor(name) if home == FILE else checkpoint.read(name)
        check_finite(checkpoint, name, tensor)
        if name == checkpoint.embedding:
            check_head(checkpoint, tensor)
        tensor = self._settled(tensor, home)
        if self._keep:
            self._tensors[key] = tensor
        return tensor

    def _settled(self, tensor: Tensor, home: str) -> Tensor:
        if home == FILE:
            return tensor
        try:
            if home == HOST:
                return tensor if self._pinned is None else self._pinned.add(tensor)
            return tensor.to(home)
        except torch.OutOfMemoryError:
            where = "the host" if home == HOST else home
            problem = f"{where} ran out of memory after {self.bytes() / 1e9:.1f} GB of the sources were loaded"
            raise InputError(problem, "give them less of it with --memory", Where("--memory")) from None

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


class Slabs:
    """Pinned memory, from which GPUs copy while they compute. Tensors share large pieces of it, as torch rounds each
    piece up to a power of two."""

    def __init__(self, slab: int = SLAB, pin: bool = True) -> None:
        """`slab`: the bytes of a piece; a tensor that is larger gets its own. `pin` False: for machines without GPU."""
        self._size, self._pin = slab, pin
        self._slab, self._used = torch.empty(0, dtype=torch.uint8), 0

    def add(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor that lies on the host."""
        count = tensor.numel() * tensor.element_size()
        if count > self._size:
            return self._put(tensor, torch.empty(count, dtype=torch.uint8, pin_memory=self._pin))
        if self._used + count > self._slab.numel():
            self._slab, self._used = torch.empty(self._size, dtype=torch.uint8, pin_memory=self._pin), 0
        memory = self._slab[self._used : self._used + count]
        self._used += -(-count // _ALIGNED) * _ALIGNED
        return self._put(tensor, memory)

    def _put(self, tensor: Tensor, memory: Tensor) -> Tensor:
        return memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name such as "bfloat16"."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
