"""Gaussian process regression of a few outputs on common inputs (Rasmussen & Williams 2006, sections 2.2, 2.7, 5.4).

All outputs share the kernel's length scales and noise, and each has a mean and an amplitude of its own, which follow
from the data. So one Cholesky factor serves them all, and only a few numbers have to be found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import erfcx, log_ndtr, ndtr

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Group = NDArray[np.intp]
"""The coordinates that share a length scale."""

_JITTER = 1e-9
_NOISE, _NOISE_SPREAD = -11.0, 4.0
"""The prior of the logarithm of the noise's variance, as a share of the signal's: far below it."""

_SPREAD = 2.0
"""The prior of the logarithm of a length scale: its standard deviation."""

_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)

_STEPS = (0.5, 0.25, 0.125, 0.0625)
_NOISE_STEP = 3.0
"""Steps of the search for the hyperparameters, and how much larger they are for the noise."""


class GaussianProcess:
    """Predicts outputs at new inputs, with the doubt that is left.

    The kernel is the squared exponential with one length scale for each group of coordinates. Its prior grows with the
    square root of the number of coordinates (Hvarfner et al. 2024, "Vanilla Bayesian Optimization Performs Great in
    High Dimensions", arXiv:2402.02229, equation 8), without which many coordinates look like noise. The length scales
    and the noise are the most probable ones.
    """

    def __init__(
        self, inputs: Matrix, outputs: Matrix, groups: Sequence[Group], scales: list[float] | None = None
    ) -> None:
        """`inputs` [n, d] in the unit cube, `outputs` [n, m], finite; `groups` partition the d coordinates. `scales`
        are those of an earlier process (`scales`), if they need not be found again."""
        self._groups = groups
        self._centre = outputs.mean(axis=0)
        self._unit: Vector = outputs.std(axis=0) + 1e-12
        self._wide = math.log(math.sqrt(inputs.shape[1])) - 0.3
        self._set(inputs, (outputs - self._centre) / self._unit)
        self.scales = self._most_probable() if scales is None else scales
        self._solve()

    @property
    def noise(self) -> Vector:
        """[m], its standard deviation."""
        return math.exp(0.5 * self.scales[-1]) * self._amplitude * self._unit

    def predict(self, inputs: Matrix) -> tuple[Matrix, Matrix]:
        """[k, m] means and standard deviations (of the function, without the noise) at [k, d] inputs."""
        between = self._kernel(self._squares(inputs, self._inputs), self.scales)
        mean = self._mean + between @ self._weights
        explained = solve_triangular(self._factor, between.T, lower=True, check_finite=False)
        left = np.sqrt(np.maximum(1.0 - (explained**2).sum(axis=0), 1e-12))
        return mean * self._unit + self._centre, left[:, None] * (self._amplitude * self._unit)

    def believe(self, inputs: Matrix) -> None:
        """Take what is predicted at `inputs` for true ("kriging believer", Ginsbourger et al. 2010): what is evaluated
        already, and not known yet, is not looked for again."""
        mean, _ = self.predict(inputs)
        outputs = np.concatenate([self._outputs, (mean - self._centre) / self._unit])
        self._set(np.concatenate([self._inputs, inputs]), outputs)
        self._solve()

    def _set(self, inputs: Matrix, outputs: Matrix) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._own = self._squares(inputs, inputs)

    def _squares(self, first: Matrix, second: Matrix) -> list[Matrix]:
        """Squared distances, for each group of coordinates."""
        found = []
        for group in self._groups:
            a, b = first[:, group], second[:, group]
            found.append(np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0.0))
        return found

    @staticmethod
    def _kernel(squares: Sequence[Matrix], scales: Sequence[float]) -> Matrix:
        total = sum(math.exp(-2 * scale) * s for scale, s in zip(scales, squares, strict=False))
        kernel: Matrix = np.exp(-0.5 * np.asarray(total))
        return kernel

    def _factored(self, scales: Sequence[float]) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """The Cholesky factor, the means, what is left of the outputs without them (whitened), and the amplitudes'
        squares. Raises LinAlgError."""
        count = len(self._inputs)
        noise = math.exp(scales[-1]) + _JITTER
        factor: Any = np.linalg.cholesky(self._kernel(self._own, scales) + noise * np.eye(count))
        stacked = np.concatenate([np.ones((count, 1)), self._outputs], axis=1)
        white: Matrix = solve_triangular(factor, stacked, lower=True, check_finite=False)
        one, rest = white[:, :1], white[:, 1:]
        mean = (one * rest).sum(axis=0) / (one**2).sum()
        rest = rest - one * mean
        return factor, mean, rest, (rest**2).sum(axis=0) / count + 1e-12

    def _surprise(self, scales: Sequence[float]) -> float:
        """Minus the logarithm of the hyperparameters' posterior (its mean over the outputs), but for a constant."""
        try:
            factor, _, _, amplitudes = self._factored(scales)
        except np.linalg.LinAlgError:
            return math.inf
        fit = 0.5 * len(self._inputs) * float(np.log(amplitudes).mean()) + float(np.log(np.diag(factor)).sum())
        prior = sum((scale - self._wide) ** 2 for scale in scales[:-1]) / (2 * _SPREAD**2)
        return fit + prior + (scales[-1] - _NOISE) ** 2 / (2 * _NOISE_SPREAD**2)

    def _most_probable(self) -> list[float]:
        """Logarithms of each group's length scale, and of the noise's variance: a search along each in turn, with steps
        that become smaller. It starts anew for every data set, so that it is a function of that."""
        scales = [*[self._wide] * len(self._groups), _NOISE + 2.0]
        least = self._surprise(scales)
        for step in _STEPS:
            for place in range(len(scales)):
                for sign in (1, -1):
                    moved = sign * step * (_NOISE_STEP if place == len(scales) - 1 else 1.0)
                    while True:
                        tried = [*scales]
                        tried[place] += moved
                        surprise = math.inf if abs(tried[place]) > 18 else self._surprise(tried)
                        if surprise > least - 1e-6:
                            break
                        scales, least = tried, surprise
        return scales

    def _solve(self) -> None:
        self._factor, self._mean, rest, amplitudes = self._factored(self.scales)
        self._amplitude: Vector = np.sqrt(amplitudes)
        self._weights = solve_triangular(self._factor.T, rest, lower=False, check_finite=False)


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
