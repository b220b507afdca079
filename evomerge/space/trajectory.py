"""The weights of a trajectory's checkpoints: an average that stands for a decay of the learning rate after training.

With updates u_j from one checkpoint to the next, sum_k c_k theta_k = theta_0 + sum_j w_j u_j, where w_j is the sum of
the c_k from k = j on. So weights that are differences of a decay, c_k = w_k - w_(k+1), give the model that a training
with its updates scaled by that decay would have given (WSM, arXiv:2507.17634, whose windows and shapes these are not:
here the decay is 1 - t^exponent, and exponent 1, a linear decay, is the plain average).
"""

from __future__ import annotations

import math
from itertools import pairwise

_DIGITS = 9
"""Significant ones, so that recipes do not depend on the last bits of a library's powers."""


def decay_weights(window: float, exponent: float, count: int) -> tuple[float, ...]:
    """The weights of `count` checkpoints, oldest first; they sum to 1, and only the last `window` (rounded, halves
    upwards) have one.

    The decay falls from 1 to 0 over the window of n checkpoints: c_k = (k / n)^exponent - ((k - 1) / n)^exponent, for k
    from 1 to n.
    """
    n = min(max(math.floor(window + 0.5), 1), count)
    ends = [(k / n) ** exponent for k in range(n + 1)]
    weights = [float(f"{after - before:.{_DIGITS}g}") for before, after in pairwise(ends)]
    return (*[0.0] * (count - n), *weights)
