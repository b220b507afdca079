"""Spherical interpolation (Shoemake 1985, Animating rotation with quaternion curves, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from evomerge.merge.arithmetic import dot, wide

_COLLINEAR = 0.9995  # cosines beyond this are interpolated straight (mergekit)
_SHORT = 1e-8  # shorter vectors are not normalised (mergekit)


def slerp(tensors: Sequence[Tensor], base: Tensor, *, t: float) -> Tensor:
    """The point at `t` on the arc from `base` (t = 0) to the one other model (t = 1), each tensor taken as one vector:

        sin((1 - t) theta) / sin(theta) * base + sin(t theta) / sin(theta) * other

    Shapes: both the same; returns that shape in float32.
    """
    near, far = wide(base), wide(tensors[0])
    from_base, from_other = coefficients(near, far, t)
    return (near * from_base).add_(far * from_other)


def coefficients(a: Tensor, b: Tensor, t: float) -> tuple[float, float]:
    """What `a` and `b` are multiplied with at `t`."""
    lengths = [norm if norm > _SHORT else 1.0 for norm in (math.sqrt(dot(a, a)), math.sqrt(dot(b, b)))]
    cosine = max(-1.0, min(1.0, dot(a, b) / (lengths[0] * lengths[1])))
    if not abs(cosine) <= _COLLINEAR:
        return 1 - t, t
    theta = math.acos(cosine)
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)
