"""Spherical interpolation (Shoemake 1985, Animating rotation with quaternion curves, section 3.3)."""

from __future__ import annotations

import math

from evomerge.merging.kernels.geometry import arc
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.methods.linear import average

_STRAIGHT = 0.9995  # cosines beyond this are interpolated straight (mergekit)
_SHORT = 1e-8  # shorter vectors are not normalised (mergekit)


def slerp(inputs: Inputs, *, t: float) -> Blend:
    """The point at `t` on the arc from the base (t = 0) to the one other model (t = 1), each tensor taken as one
    vector:

    sin((1 - t) theta) / sin(theta) * base + sin(t theta) / sin(theta) * other
    """
    (aa, ab), (_, bb) = inputs.gram(deltas=False, base=True)
    # cos(theta) = <base, other> / (|base| |other|)
    lengths = [norm if norm > _SHORT else 1.0 for norm in (math.sqrt(aa), math.sqrt(bb))]
    from_base, from_other = arc(ab / (lengths[0] * lengths[1]), t, _STRAIGHT)
    return average(inputs, [from_other], base=from_base)
