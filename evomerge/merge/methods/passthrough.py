"""One model's tensors as they are, or scaled (mergekit, docs/merge_methods, Passthrough)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merge.arithmetic import wide


def passthrough(tensors: Sequence[Tensor], base: Tensor | None, *, scale: Sequence[float]) -> Tensor:
    """scale * theta; at scale 1 the very bits.

    Shapes: returns the tensor's own shape.
    """
    return tensors[0] if scale[0] == 1 else wide(tensors[0]) * scale[0]
