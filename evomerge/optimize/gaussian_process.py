"""Gaussian process regression of a few outputs on common inputs (Rasmussen & Williams 2006, sections 2.2, 2.7, 5.4),
and the acquisition function that says which candidate to evaluate next.

All outputs share the kernel's length scales and noise. Each has a mean and an amplitude of its own, which follow from
the data. So one Cholesky factor serves all outputs, and only a few numbers have to be fitted.
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
"""The prior of the logarithm of the noise's variance, as a share of the signal's: its mean and standard deviation."""

_SCALE_SPREAD = 2.0
"""The prior of the logarithm of a length scale: its standard deviation."""

_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)

_STEPS = (0.5, 0.25, 0.125, 0.0625)
_NOISE_STEP = 3.0
"""Steps of the search for the hyperparameters, and how many times larger they are for the noise."""

_LIMIT = 18.0
"""The largest absolute value of a hyperparameter's logarithm."""


class GaussianProcess:
    """Predicts outputs at new inputs, with standard deviations.

    The kernel is the squared exponential with one length scale for each group of coordinates. Its prior grows with the
    square root of the number of coordinates (Hvarfner et al. 2024, "Vanilla Bayesian Optimization Performs Great in
    High Dimensions", arXiv:2402.02229, equation 8), without which many coordinates look like noise. Length scales and
    noise are the maximum of their posterior.
    """

    def __init__(
        self, inputs: Matrix, outputs: Matrix, groups: Sequence[Group], hyperparameters: list[float] | None = None
    ) -> None:
        """`inputs`: [n, d], in the unit cube. `outputs`: [n, m], finite. `groups`: a partition of the d coordinates.
        `hyperparameters`: the ones of an earlier process, where they need not be fitted again."""
        self._groups = groups
        self._center = outputs.mean(axis=0)
        self._unit: Vector = outputs.std(axis=0) + 1e-12
        self._prior_scale = math.log(math.sqrt(inputs.shape[1])) - 0.3
        self._set(inputs, (outputs - self._center) / self._unit)
        self.hyperparameters = self._most_probable() if hyperparameters is None else hyperparameters
        self._solve()

    @property
    def noise(self) -> Vector:
        """[m], the noise's standard deviation."""
        return math.exp(0.5 * self.hyperparameters[-1]) * self._amplitude * self._unit

    def predict(self, inputs: Matrix) -> tuple[Matrix, Matrix]:
        """[k, m] means and standard deviations (of the function, without the noise) at [k, d] inputs."""
        # variance: 1 - |L⁻¹ k*|², times the squared amplitude (equation 2.26)
        mean, explained = self.explained(inputs)
        return mean, self.scaled(np.sqrt(unexplained(explained)))

    def explained(self, inputs: Matrix) -> tuple[Matrix, Matrix]:
        """[k, m] means at [k, d] inputs, and L⁻¹ k* [n, k], whose squares sum to the shares of the variances that the
        data explain."""
        # mean: mu + k*ᵀ K⁻¹ (y - mu) (equation 2.25)
        cross = self.kernel(inputs, self._inputs)
        mean = self._mean + cross @ self._weights
        explained: Matrix = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        return mean * self._unit + self._center, explained

    def scaled(self, std: Vector) -> Matrix:
        """[k, m] standard deviations of the outputs, of [k] that are shares of the amplitudes."""
        scaled: Matrix = std[:, None] * (self._amplitude * self._unit)
        return scaled

    def kernel(self, first: Matrix, second: Matrix) -> Matrix:
        """The kernel between inputs: [k, l]."""
        return self._kernel(self._squares(first, second), self.hyperparameters)

    @property
    def noise_share(self) -> float:
        """The noise's variance, as a share of the signal's."""
        return math.exp(self.hyperparameters[-1]) + _JITTER

    def predict_differences(self, center: Vector, places: Group, low: Vector, high: Vector) -> tuple[Vector, Vector]:
        """How much the first output changes when one coordinate of `center` goes from a low to a high value and all
        others stay: the mean and the standard deviation of each difference.

        Args:
            center: [d].
            places: [k], the coordinates.
            low, high: [k], their values.
        """
        scale = self._scales()[places]
        # The squared distance to a datum, in length scales, with one coordinate exchanged: [k, n].
        whole = (self._scales() * (center - self._inputs) ** 2).sum(axis=1)
        data = self._inputs[:, places].T
        others = whole - scale[:, None] * (center[places][:, None] - data) ** 2
        rows = [np.exp(-0.5 * np.maximum(others + scale[:, None] * (v[:, None] - data) ** 2, 0.0)) for v in (low, high)]
        cross: Matrix = rows[1] - rows[0]
        change: Vector = (cross @ self._weights)[:, 0] * self._unit[0]
        # var f(b) - f(a) = 2 - 2 k(a, b) - |L⁻¹ (k_b - k_a)|², times the squared amplitude
        explained = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        apart = 2.0 - 2.0 * np.exp(-0.5 * scale * (high - low) ** 2)
        variance = np.maximum(apart - (explained**2).sum(axis=0), 0.0)
        return change, np.sqrt(variance) * float(self._amplitude[0] * self._unit[0])

    def _scales(self) -> Vector:
        """[d], one over the squared length scale of each coordinate."""
        scales = np.zeros(self._inputs.shape[1])
        for group, scale in zip(self._groups, self.hyperparameters, strict=False):
            scales[group] = math.exp(-2 * scale)
        return scales

    def add_fantasies(self, inputs: Matrix) -> None:
        """Adds the predictions at `inputs` to the data ("kriging believer", Ginsbourger et al. 2010): candidates that
        are being evaluated are not looked for again."""
        mean, _ = self.predict(inputs)
        outputs = np.concatenate([self._outputs, (mean - self._center) / self._unit])
        self._set(np.concatenate([self._inputs, inputs]), outputs)
        self._solve()

    def _set(self, inputs: Matrix, outputs: Matrix) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._distances = self._squares(inputs, inputs)

    def _squares(self, first: Matrix, second: Matrix) -> list[Matrix]:
        """Squared distances, for each group of coordinates."""
        squares = []
        for group in self._groups:
            a, b = first[:, group], second[:, group]
            squares.append(np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0.0))
        return squares

    @staticmethod
    def _kernel(squares: Sequence[Matrix], hyperparameters: Sequence[float]) -> Matrix:
        """exp(-r² / 2), where r² sums the squared distances, each over its squared length scale."""
        total = sum(math.exp(-2 * scale) * s for scale, s in zip(hyperparameters, squares, strict=False))
        kernel: Matrix = np.exp(-0.5 * np.asarray(total))
        return kernel

    def _factored(self, hyperparameters: Sequence[float]) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """The Cholesky factor of the kernel with noise, the outputs' means, the whitened residuals, and the squared
        amplitudes. Raises LinAlgError."""
        count = len(self._inputs)
        # K + noise I = L Lᵀ
        noise = math.exp(hyperparameters[-1]) + _JITTER
        factor: Any = np.linalg.cholesky(self._kernel(self._distances, hyperparameters) + noise * np.eye(count))
        # whitened by L⁻¹: mu = 1ᵀ K⁻¹ y / 1ᵀ K⁻¹ 1, amplitude² = (y - mu)ᵀ K⁻¹ (y - mu) / n
        stacked = np.concatenate([np.ones((count, 1)), self._outputs], axis=1)
        white: Matrix = solve_triangular(factor, stacked, lower=True, check_finite=False)
        one, residual = white[:, :1], white[:, 1:]
        mean = (one * residual).sum(axis=0) / (one**2).sum()
        residual = residual - one * mean
        return factor, mean, residual, (residual**2).sum(axis=0) / count + 1e-12

    def _negative_log_posterior(self, hyperparameters: Sequence[float]) -> float:
        """Of the hyperparameters, but for a constant: n / 2 log amplitude² + log |L|, the mean over the outputs, plus
        the squared distances from the priors' means."""
        try:
            factor, _, _, amplitudes = self._factored(hyperparameters)
        except np.linalg.LinAlgError:
            return math.inf
        fit = 0.5 * len(self._inputs) * float(np.log(amplitudes).mean()) + float(np.log(np.diag(factor)).sum())
        prior = sum((scale - self._prior_scale) ** 2 for scale in hyperparameters[:-1]) / (2 * _SCALE_SPREAD**2)
        return fit + prior + (hyperparameters[-1] - _NOISE) ** 2 / (2 * _NOISE_SPREAD**2)

    def _most_probable(self) -> list[float]:
        """Logarithms of each group's length scale, and of the noise's variance, at the posterior's maximum.

        The search goes along each of them in turn, with steps that become smaller. It starts anew for every data set,
        so that the result is a function of the data.
        """
        best = [*[self._prior_scale] * len(self._groups), _NOISE + 2.0]
        least = self._negative_log_posterior(best)
        for step in _STEPS:
            for place in range(len(best)):
                for sign in (1, -1):
                    move = sign * step * (_NOISE_STEP if place == len(best) - 1 else 1.0)
                    while True:
                        tried = [*best]
                        tried[place] += move
                        loss = math.inf if abs(tried[place]) > _LIMIT else self._negative_log_posterior(tried)
                        if loss > least - 1e-6:
                            break
                        best, least = tried, loss
        return best

    def _solve(self) -> None:
        self._factor, self._mean, residual, amplitudes = self._factored(self.hyperparameters)
        self._amplitude: Vector = np.sqrt(amplitudes)
        self._weights = solve_triangular(self._factor.T, residual, lower=False, check_finite=False)


def unexplained(explained: Matrix) -> Vector:
    """[k], the shares of the variances that are left (`GaussianProcess.explained`)."""
    left: Vector = np.maximum(1.0 - (explained**2).sum(axis=0), 1e-12)
    return left


class Believer:
    """Predictions at fixed inputs, as one after the other of them is taken for an outcome ("kriging believer"). The
    means stay what they are, the standard deviations shrink: an update of rank one each, where a new process would need
    a new Cholesky factor.

    Attributes:
        mean, std: [k, m], as `GaussianProcess.predict` gives them.
    """

    def __init__(self, model: GaussianProcess, inputs: Matrix, mean: Matrix, explained: Matrix) -> None:
        """`inputs`: [k, d]. `mean`, `explained`: what `GaussianProcess.explained` says of them."""
        self._model, self._inputs, self.mean, self._explained = model, inputs, mean, explained
        self._variance = unexplained(explained)
        self._updates = np.zeros((0, len(inputs)))

    @property
    def std(self) -> Matrix:
        return self._model.scaled(np.sqrt(self._variance))

    def believe(self, place: int) -> None:
        """Takes the prediction at an input for an outcome, with the noise of one."""
        # c(x) = k(x, x*) - k_xᵀ K⁻¹ k_*: the covariance with the input, of which earlier updates took their parts
        covariance = self._model.kernel(self._inputs, self._inputs[[place]])[:, 0]
        covariance = covariance - self._explained[:, place] @ self._explained
        covariance = covariance - self._updates[:, place] @ self._updates
        update = covariance / math.sqrt(self._variance[place] + self._model.noise_share)
        self._updates = np.concatenate([self._updates, update[None]])
        self._variance = np.maximum(self._variance - update**2, 1e-12)


def acquisition(mean: Matrix, std: Matrix, best: float | None) -> Vector:
    """[k], the higher the more an evaluation of the candidate is worth.

    Args:
        mean, std: [k, 1 + floors], the predictions of the objective and of the margin above each floor.
        best: the best feasible objective; None where nothing feasible is known.
    """
    margins, stds = mean[:, 1:], std[:, 1:]
    # 1. Sum of log P(margin >= 0): the probability that every floor is met. It is all that counts where nothing
    # feasible is known, and it is not afraid of what is unknown: a shortfall that is expected is smallest beside what
    # has been seen, however hopeless that is.
    log_feasible: Vector = log_ndtr(margins / stds).sum(axis=1)
    if best is None:
        return log_feasible
    # 2. Plus log EI: the expected improvement times that probability (Gardner et al. 2014, "Bayesian Optimization with
    # Inequality Constraints", equation 5).
    return log_expected_improvement(mean[:, 0], std[:, 0], best) + log_feasible


def log_expected_improvement(mean: Vector, std: Vector, best: float) -> Vector:
    """[k], log E[max(0, f - best)] for normally distributed f: log s + log(phi(z) + z Phi(z)) with z = (mean - best) /
    s. It is exact also where the improvement is hopelessly small (Ament et al. 2023, "Unexpected Improvements to
    Expected Improvement", arXiv:2310.20708, equation 9)."""
    z = (mean - best) / std
    near = np.log(np.maximum(np.exp(-0.5 * z**2 - _LOG_ROOT_2PI) + z * ndtr(z), 1e-300))
    # phi(z) + z Phi(z) = phi(z) (1 - |z| M(|z|)) for z < 0, where M is Mills' ratio
    mills = math.sqrt(math.pi / 2) * erfcx(np.maximum(-z, 0.0) / math.sqrt(2))
    inner = np.maximum(1.0 + np.minimum(z, 0.0) * mills, 0.0)
    far = -0.5 * z**2 - _LOG_ROOT_2PI + np.log(np.where(inner > 1e-10, inner, 1.0 / (1.0 + z**2)))
    improvement: Vector = np.log(std) + np.where(z > -1.0, near, far)
    return improvement
