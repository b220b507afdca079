"""Tensors of one shape that lie evenly spaced in one memory are the rows of one tensor, and one call merges them all.

A mixture of experts has thousands of small tensors, in a model of transformers as parts of a few large parameters. A
call costs a tenth of a millisecond however small its tensors are: as much as the work itself, on a GPU more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import wide_dtype
from evomerge.merging.kernels.compiled import Signature
from evomerge.merging.kernels.inputs import Blend


def rows(tensors: Sequence[Tensor]) -> Tensor | None:
    """The tensors as the rows of one, [tensors, elements], in the memory where they are; None where they lie otherwise.
    The rows may be apart."""
    first = tensors[0]
    step = tensors[1].data_ptr() - first.data_ptr()
    if step % first.element_size() or step < first.nbytes or not first.is_contiguous():
        return None
    # Between two tensors of one memory lies only that memory
    if tensors[-1].untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
        return None
    for i, tensor in enumerate(tensors[1:], 1):
        alike = tensor.shape == first.shape and tensor.dtype == first.dtype and tensor.is_contiguous()
        if not alike or tensor.data_ptr() != first.data_ptr() + i * step:
            return None
    return first.as_strided((len(tensors), first.numel()), (step // first.element_size(), 1))


@dataclass(frozen=True)
class Joint:
    """Two or more Blends of one kernel as one.

    Attributes:
        out, base, tensors: [blends, elements] each; `out` and `base` are None where there is none.
    """

    blends: Sequence[Blend]
    out: Tensor | None
    base: Tensor | None
    tensors: Sequence[Tensor]

    @classmethod
    def of(cls, blends: Sequence[Blend], outs: Sequence[Tensor] = ()) -> Joint | None:
        """The blends as one, if their tensors and `outs`, into which they are written, are rows on one device."""
        first = blends[0]
        alike = all(b.kernel == first.kernel and len(b.tensors) == len(first.tensors) for b in blends)
        if len(blends) < 2 or not alike:
            return None
        bases = [b.base for b in blends if b.base is not None]
        columns = [*([outs] if outs else []), *([bases] if bases else [])]
        columns += [[b.tensors[i] for b in blends] for i in range(len(first.tensors))]
        found = []
        for column in columns:
            joined = rows(column) if column[0].device == columns[0][0].device else None
            if joined is None:
                return None
            found.append(joined)
        out = found.pop(0) if outs else None
        return cls(blends, out, found.pop(0) if bases else None, found)

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    def signature(self, work: torch.dtype) -> Signature:
        """What code is compiled for."""
        chunks = [t for t in (self.out, self.base, *self.tensors) if t is not None]
        apart = tuple(t.stride(0) != t.shape[1] for t in chunks)
        return Signature.of(self.blends[0], str(self.device), work, None if self.out is None else self.out.dtype, apart)

    def arguments(self, work: torch.dtype) -> list[Any]:
        """The arguments of the code: the tensors, then the numbers, [rows, columns, blends, 1]."""
        floats = _columns([blend.floats for blend in self.blends])
        ints = _columns([blend.ints(0) for blend in self.blends])
        numbers = (
            torch.tensor(floats, dtype=wide_dtype(work), device=self.device),
            torch.tensor(ints, dtype=torch.int32, device=self.device),
        )
        return [*([] if self.out is None else [self.out]), self.base, list(self.tensors), *numbers]


def _columns(tables: Sequence[Sequence[Sequence[float]]]) -> list[list[list[list[float]]]]:
    """[blends][rows][columns] as [rows][columns][blends][1]."""
    return [[[[n] for n in column] for column in zip(*row, strict=True)] for row in zip(*tables, strict=True)]
