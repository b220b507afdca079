"""The source bank opens every checkpoint of a run once, reads each tensor once, and keeps it as it is stored, in the
place that the placement plan chose."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.preflight import check_finite, check_head
from evomerge.checkpoints.siblings import siblings
from evomerge.errors import InputError, Where
from evomerge.merging.kernels.inputs import Kept
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.resident.placement import CPU, FILE, HOST, SLAB, Placement, tensor_key
from evomerge.recipe.recipe import Recipe

T = TypeVar("T")
_ALIGNED = 512  # bytes


class SourceBank:
    """Holds checkpoints by reference, their tensors, and facts of the tensors alone (histograms, inner products).

    No delta and no cast is kept beside the stored tensor: a method derives them while it runs.
    """

    def __init__(self, keep: bool = True, placement: Placement | None = None, kept: Kept | None = None) -> None:
        """`keep`: whether a tensor stays in memory once read. A search keeps; a single merge to disk does not.
        `placement`: the place of each tensor; without one it is host memory. What stays in its file is read for each
        use, not mapped: to touch a mapped page of a file that was cut ends the process.
        `kept`: of what takes long to compute, for other processes (`factor_cache`)."""
        self._keep, self._placement, self.kept = keep, placement, kept
        self._pinned = Slabs() if placement is not None and placement.pinned else None
        self._checkpoints: dict[str, Checkpoint] = {}
        self._tensors: dict[Hashable, Tensor] = {}
        self._addresses: set[int] = set()  # the addresses of these tensors, and of remembered ones
        self._rows: dict[str, dict[str, _Row]] = {}  # by the checkpoint's resolved reference
        self._checked: set[Hashable] = set()
        self.held: dict[str, MergePlan] = {}  # by the recipe's id
        self._merged: dict[str, Callable[[str], Tensor]] = {}  # by the same, what makes their tensors
        self._remembered: dict[Hashable, Any] = {}

    def hold(self, recipe: Recipe, planned: MergePlan, make: Callable[[str], Tensor]) -> None:
        """Keep the tensors of a merge like those of a checkpoint, under the recipe's id. `make`: merges the tensor of a
        name; it is called once for each."""
        self.held[recipe.id], self._merged[recipe.id] = planned, make

    def add(self, checkpoint: Checkpoint) -> Checkpoint:
        """Use this opened checkpoint for its reference and its resolved reference."""
        first = self._checkpoints.setdefault(checkpoint.resolved(), checkpoint)
        self._checkpoints[checkpoint.reference] = first
        return first

    def open(self, ref: str, where: Where | None = None) -> Checkpoint:
        """The checkpoint of a reference, opened at the first call. Raises InputError."""
        if ref not in self._checkpoints:
            self._checkpoints[ref] = self.add(Checkpoint.open(ref, where))
        return self._checkpoints[ref]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint that was opened."""
        return list({id(checkpoint): checkpoint for checkpoint in self._checkpoints.values()}.values())

    def load(
        self,
        ref: str,
        where: Where | None = None,
        progress: Callable[[int], None] | None = None,
        names: Collection[str] | None = None,
    ) -> None:
        """Read all of a checkpoint's tensors now, so that damaged weights are found before a search starts.

        `progress`: called with the bytes of each tensor once it is in its place. `names`: of those to read; None: all.

        Raises:
            InputError: a tensor holds NaN or Inf, or the stored head of a tied model differs from its embeddings.
        """
        checkpoint = self.open(ref, where)
        for name, info in checkpoint.tensors.items():
            if names is None or name in names:
                self.tensor(ref, name)
            if progress:
                progress(info.bytes)

    def tensor(self, ref: str, name: str) -> Tensor:
        """A tensor as it is stored, in its place. Callers must not write into it.

        Raises:
            InputError: it is not finite, or its device ran out of memory.
        """
        if ref in self._merged:
            return self._merge(ref, name)
        checkpoint = self.open(ref)
        key = tensor_key(checkpoint, name)
        if key in self._tensors:
            return self._tensors[key]
        tensor = checkpoint.read(name)
        if key not in self._checked:
            check_finite(checkpoint, name, tensor)
            if name == checkpoint.embedding:
                check_head(checkpoint, tensor)
            self._checked.add(key)
        home = HOST if self._placement is None else self._placement.home(checkpoint, name)
        if home == FILE:
            return tensor
        if not self._keep:
            return self._put(tensor, home)
        kept = self._tensors[key] = self._put(tensor, home, self._rows_of(checkpoint).get(name))
        self._addresses.add(kept.data_ptr())
        return kept

    def _merge(self, ref: str, name: str) -> Tensor:
        """A tensor of a held merge, in host memory."""
        key = ref, name
        if key not in self._tensors:
            merged, row = self._merged[ref](name), self._rows.get(ref, {}).get(name)
            kept = self._tensors[key] = self._put(merged, HOST, row)
            self._addresses.add(kept.data_ptr())
        return self._tensors[key]

    def kept_tensor(self, ref: str, name: str) -> Tensor | None:
        """A tensor that stays in memory, in its place; None for one that is read for each use."""
        if ref in self._merged:
            return self._merge(ref, name)
        checkpoint = self.open(ref)
        home = HOST if self._placement is None else self._placement.home(checkpoint, name)
        return self.tensor(ref, name) if self._keep and home != FILE else None

    def arrange(self, ref: str, offsets: Mapping[str, int], elements: int) -> None:
        """Puts tensors of a checkpoint, or of a held merge, into one memory of so many elements, each at its offset,
        once they are read. What has no room there together stays apart."""
        memory, merged = _Memory(elements), ref in self._merged
        if not merged:
            checkpoint = self.open(ref)
            homes = {HOST if self._placement is None else self._placement.home(checkpoint, name) for name in offsets}
            infos = [checkpoint.tensors[name] for name in offsets]
            whole = sum(info.elements for info in infos) == elements
            if len(homes) > 1 or len({info.dtype for info in infos}) > 1 or not whole:
                return
        rows = self._rows.setdefault(ref, {}) if merged else self._rows_of(checkpoint)
        rows.update({name: _Row(memory, offset) for name, offset in offsets.items()})

    def forget(self) -> None:
        """Drops all tensors and all that was made of them, so that they are read again."""
        self._tensors, self._remembered, self._addresses = {}, {}, set()

    def _rows_of(self, checkpoint: Checkpoint) -> dict[str, _Row]:
        key = checkpoint.resolved()
        if key not in self._rows:
            self._rows[key] = self._siblings(checkpoint)
        return self._rows[key]

    def holds(self, *tensors: Tensor | None) -> bool:
        """Whether tensors (None: no tensor) are kept ones; others, read from a file or cast, are gone after their
        use."""
        return all(tensor is None or tensor.data_ptr() in self._addresses for tensor in tensors)

    def _siblings(self, checkpoint: Checkpoint) -> dict[str, _Row]:
        """The places of tensors that lie beside their siblings: those of one home, shape and dtype."""
        places = {}
        for group in siblings(checkpoint.tensors):
            alike: dict[Hashable, list[str]] = {}
            for name in group if len(group) > 1 else ():
                home = HOST if self._placement is None else self._placement.home(checkpoint, name)
                info = checkpoint.tensors[name]
                alike.setdefault((home, info.shape, info.dtype), []).append(name)
            for names in alike.values():
                if len(names) > 1:
                    size = checkpoint.tensors[names[0]].elements
                    memory = _Memory(len(names) * size)
                    places.update({name: _Row(memory, i * size) for i, name in enumerate(names)})
        return places

    def _put(self, tensor: Tensor, home: str, row: _Row | None = None) -> Tensor:
        """The tensor in its home, in its row there. InputError if there is not enough memory."""
        try:
            if row is not None:
                return row.filled(tensor, home, self._pinned is not None)
            if home == HOST:
                return tensor if self._pinned is None else self._pinned.add(tensor)
            return tensor.to(home)
        except torch.OutOfMemoryError:
            where = "the host" if home == HOST else home
            problem = f"{where} ran out of memory after {self.bytes() / 1e9:.1f} GB of the sources were loaded"
            raise InputError(problem, "give them less of it with --memory", Where("--memory")) from None

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result of `make` for this key, made once if the bank keeps."""
        if not self._keep:
            return make()
        if key not in self._remembered:
            made = self._remembered[key] = make()
            if isinstance(made, Tensor):
                self._addresses.add(made.data_ptr())
        value: T = self._remembered[key]
        return value

    def recall(self, key: Hashable) -> Any:
        """What is remembered under a key; None: nothing."""
        return self._remembered.get(key)

    def bytes(self) -> int:
        """The bytes of the kept tensors."""
        return sum(t.numel() * t.element_size() for t in self._tensors.values())


@dataclass
class _Memory:
    """One memory for tensors that are merged in one call (`kernels.rows`), or are one parameter once they are loaded:
    the experts of a layer."""

    elements: int
    tensor: Tensor | None = None


@dataclass(frozen=True)
class _Row:
    """A place in such a memory."""

    memory: _Memory
    offset: int

    def filled(self, tensor: Tensor, home: str, pinned: bool) -> Tensor:
        """The place, with a copy of the tensor."""
        if self.memory.tensor is None:
            device = CPU if home == HOST else home
            pin = pinned and device == CPU
            self.memory.tensor = torch.empty(self.memory.elements, dtype=tensor.dtype, device=device, pin_memory=pin)
        place = self.memory.tensor[self.offset : self.offset + tensor.numel()]
        return place.view(tensor.shape).copy_(tensor)


class Slabs:
    """Allocates pinned memory, from which GPUs copy while they compute. Tensors share large slabs of it, because torch
    rounds each allocation up to a power of two."""

    def __init__(self, slab: int = SLAB, pin: bool = True) -> None:
        """`slab`: the bytes of a slab; a larger tensor gets its own. `pin` False: for machines without GPU."""
        self._size, self._pin = slab, pin
        self._slab, self._used = torch.empty(0, dtype=torch.uint8), 0

    def add(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor that lies on the host."""
        count = tensor.numel() * tensor.element_size()
        if count > self._size:
            return _copied(tensor, torch.empty(count, dtype=torch.uint8, pin_memory=self._pin))
        if self._used + count > self._slab.numel():
            self._slab, self._used = torch.empty(self._size, dtype=torch.uint8, pin_memory=self._pin), 0
        memory = self._slab[self._used : self._used + count]
        self._used += -(-count // _ALIGNED) * _ALIGNED
        return _copied(tensor, memory)


def _copied(tensor: Tensor, memory: Tensor) -> Tensor:
    """The tensor, copied into `memory` (bytes)."""
    return memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name such as "bfloat16"."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
