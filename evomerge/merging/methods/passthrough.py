"""One model's tensors as they are, or scaled (mergekit, docs/merge_methods, Passthrough)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.methods.linear import average


def passthrough(inputs: Inputs, *, scale: Sequence[float]) -> Blend | Tensor:
    """scale * theta; at scale 1 the very bits."""
    return inputs.tensors[0] if scale[0] == 1 else average(inputs, scale)
