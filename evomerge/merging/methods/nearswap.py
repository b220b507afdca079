"""NearSwap: where both models are close, take the other's value (mergekit 0.1.5, merge_methods/nearswap.py)."""

from __future__ import annotations

from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs


def nearswap(inputs: Inputs, *, t: float) -> Blend:
    """Each element goes from the base's value towards the other model's, by `t` (in units of the weights) at most: all
    the way where the two differ by no more."""
    return Blend(Kernel("nearswap"), inputs.base, inputs.tensors, [[t]])
