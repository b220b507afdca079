"""Which candidate is worth an evaluation, by what is predicted of its objective and its margins above the floors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr, ndtr

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


def worth(mean: Matrix, spread: Matrix, best: float | None) -> Vector:
    """[k], larger for candidates that are more worth it; `mean` and `spread` are [k, 1 + floors], objective first.

    With a feasible candidate at hand, whose objective is `best`: the logarithm of the expected improvement over it
    times the probability that every floor is met (Gardner et al. 2014, "Bayesian Optimization with Inequality
    Constraints", equation 5). Without one: minus the expected shortfall.
    """
    margins, doubts = mean[:, 1:], spread[:, 1:]
    if best is None:
        return -expected_shortfall(margins, doubts)
    met: Vector = log_ndtr(margins / doubts).sum(axis=1)
    return log_expected_improvement(mean[:, 0], spread[:, 0], best) + met


def expected_shortfall(margins: Matrix, doubts: Matrix) -> Vector:
    """[k], the expectation of the total shortfall of normally distributed margins."""
    z = margins / doubts
    missed: Vector = (doubts * (np.exp(-0.5 * z**2 - _LOG_ROOT_2PI) - z * ndtr(-z))).sum(axis=1)
    return missed


def log_expected_improvement(mean: Vector, spread: Vector, best: float) -> Vector:
    """[k], log E[max(0, f - best)] for normally distributed f, exact where the improvement is hopelessly small, too
    (Ament et al. 2023, "Unexpected Improvements to Expected Improvement", arXiv:2310.20708, equation 9)."""
    z = (mean - best) / spread
    near = np.log(np.maximum(np.exp(-0.5 * z**2 - _LOG_ROOT_2PI) + z * ndtr(z), 1e-300))
    # phi(z) + z Phi(z) = phi(z) (1 - |z| M(|z|)) for z < 0, where M is Mills' ratio
    mills = math.sqrt(math.pi / 2) * erfcx(np.maximum(-z, 0.0) / math.sqrt(2))
    inner = np.maximum(1.0 + np.minimum(z, 0.0) * mills, 0.0)
    far = -0.5 * z**2 - _LOG_ROOT_2PI + np.log(np.where(inner > 1e-10, inner, 1.0 / (1.0 + z**2)))
    found: Vector = np.log(spread) + np.where(z > -1.0, near, far)
    return found
