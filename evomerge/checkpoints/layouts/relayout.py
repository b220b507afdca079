"""Tensors of one checkpoint as another of the same model stores them: experts one by one, or fused; old names, or new.

Both are laid over one model of transformers (`layout`). Two stored tensors that have the same place in it are one under
two names; a part of a fused tensor is a view of it; a fused tensor is put together from its parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.layouts.layout import Slot, layout
from evomerge.checkpoints.layouts.unread import skeleton

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Region:
    """A part of a contiguous tensor: sizes, strides and offset, in elements."""

    shape: Shape
    strides: Shape
    offset: int

    def of(self, whole: Tensor) -> Tensor:
        """A view of this part."""
        return whole.as_strided(self.shape, self.strides, self.offset)


@dataclass(frozen=True)
class Pieces:
    """How a tensor is made of the stored ones of another layout: these are the parts `at` of a tensor of the shape
    `whole`, of which it is the part `out`.

    Attributes:
        names: of the stored tensors.
    """

    names: tuple[str, ...]
    at: tuple[Region, ...]
    whole: Shape
    out: Region

    @property
    def same(self) -> bool:
        """Whether it is a stored tensor, under another name."""
        return self.at == (self.out,)

    def build(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensor, of the stored ones in the order of `names`; a view, where there is one."""
        first = tensors[0]
        if self.same:
            return first
        if self.at == (_whole(self.whole),):
            return self.out.of(first.contiguous())
        whole = first.new_empty(self.whole)
        for region, tensor in zip(self.at, tensors, strict=True):
            region.of(whole).copy_(tensor)
        return self.out.of(whole)


def pieces(config: Mapping[str, Any], ours: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> dict[str, Pieces]:
    """How the tensors of the names and shapes `ours` are made of those of `theirs`: of each one that is not among them
    and can be made. Empty where transformers does not know the model.

    Args:
        config: of the model that both are checkpoints of.
    """
    lacking = {name: shape for name, shape in ours.items() if name not in theirs}
    if not lacking or all(name in ours for name in theirs):
        return {}
    return _pieces(json.dumps(config, sort_keys=True), tuple(lacking.items()), tuple(theirs.items()))


@lru_cache(maxsize=16)
def _pieces(
    config: str, ours: tuple[tuple[str, Shape], ...], theirs: tuple[tuple[str, Shape], ...]
) -> dict[str, Pieces]:
    model = skeleton(json.loads(config))
    if model is None:
        return {}
    stored: dict[int, list[tuple[str, Slot]]] = {}
    for name, slot in layout(model, dict(theirs)).slots.items():
        stored.setdefault(id(slot.home), []).append((name, slot))
    made = {}
    for name, slot in layout(model, dict(ours)).slots.items():
        out, here = _region(slot), stored.get(id(slot.home), [])
        # 1. The same place under another name. 2. Else all that is stored of the parameter, if that is all of it.
        parts = [part for part in here if _region(part[1]) == out] or here
        covered = sum(part.tensor.numel() for _, part in parts)
        if parts and (covered == slot.home.numel() or _region(parts[0][1]) == out):
            regions = tuple(_region(part) for _, part in parts)
            made[name] = Pieces(tuple(n for n, _ in parts), regions, tuple(slot.home.shape), out)
    return made


def _region(slot: Slot) -> Region:
    view = slot.tensor
    return Region(tuple(view.shape), tuple(view.stride()), int(view.storage_offset() - slot.home.storage_offset()))


def _whole(shape: Shape) -> Region:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return Region(shape, tuple(reversed(strides)), 0)
