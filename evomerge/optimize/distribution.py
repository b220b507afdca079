"""The distribution of CMA-ES, by the package `cma`, over the vectors of `space.vector.Encoding`.

It draws from a private generator, so that an evaluation that reseeds numpy cannot change the search. It learns from
ranks, not scores. pycma's own stop conditions, which would take ranks for scores, are not used.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.space.vector import Encoding, Vector

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no matplotlib to plot with
    import cma

_COLLAPSED = 1e-5
"""A distribution narrower than this in all numeric genes, as a share of their ranges, has nothing left to find.
Where all genes are choices, which have no scale, this and its inverse keep the numbers in a sane range."""

_CONDITION = 1e14
"""Beyond this condition number of the covariance matrix, its decomposition is noise (pycma's tolconditioncov)."""

_WIDEN = 1.5
"""Growth of the step size on a plateau (pycma's manage_plateaus)."""


class Distribution:
    """A multivariate normal distribution, m + sigma D N(0, C), that moves towards the better vectors.

    D holds a scale for each coordinate (`CMA_diagonal_decoding`: Akimoto & Hansen 2020, "Diagonal
    Acceleration for Covariance Matrix Adaptation Evolution Strategies"): nearer after 300 trials in 10 and 20 genes.
    """

    def __init__(
        self,
        encoding: Encoding,
        mean: Vector,
        sigma: float,
        population: int,
        generator: np.random.Generator,
        separable: bool = False,
    ) -> None:
        """
        Args:
            mean, sigma: the initial mean and step size.
            population: the number of samples of one update.
            separable: learn no correlations (Ros & Hansen 2008, "A Simple Modification in CMA-ES Achieving Linear Time
                and Space Complexity"), where there are too many coordinates to learn them within a search.

        A choice's coordinates start `sigma` apart: its initial option then
        leads each other option with probability Φ(1/√2) = 0.76, whatever `sigma` is."""
        self._encoding, self._separable = encoding, separable
        self._numeric = list(encoding.numeric_coordinates)
        mean = mean.copy()
        for place in encoding.choice_coordinates:
            mean[place] = sigma * mean[place]
        # pycma does not support one coordinate; a second one, without effect, is
        width = max(encoding.size, 2)
        numeric = np.isin(np.arange(width), self._numeric)
        bounds = [np.where(numeric, 0.0, -np.inf), np.where(numeric, 1.0, np.inf)] if self._numeric else None
        # pycma takes a sample to be B D z, with C = B D² Bᵀ. Which signs an eigenvector in B has is up to the
        # processor and its number of threads; so z = Bᵀ z', as normal as z', makes it the symmetric root of C
        # times z', and a run can be resumed elsewhere
        rotated = lambda *shape: generator.standard_normal(shape) @ self._es.sm.B  # noqa: E731
        options: dict[str, Any] = {
            "randn": (lambda *shape: generator.standard_normal(shape)) if separable else rotated,
            "seed": np.nan,  # leave numpy's global generator alone
            "bounds": bounds or [None, None],
            "CMA_diagonal_decoding": 1,
            "CMA_diagonal": separable,
            "popsize": population,
            "CMA_mirrors": False,  # a small population would get mirrored samples, which need all of it at once
            "verbose": -10,  # print nothing, write no log, read no signals file
            "verb_log": 0,
            "verb_disp": 0,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._es: Any = cma.CMAEvolutionStrategy(np.pad(mean, (0, width - mean.size)), sigma, options)

    @property
    def population(self) -> int:
        """How many vectors one update takes."""
        return int(self._es.popsize)

    @property
    def parents(self) -> int:
        """How many of them, the best ones, the mean moves towards (mu)."""
        return int(self._es.sp.weights.mu)

    @property
    def mean(self) -> Vector:
        """The mean as a sample: inside pycma a value near a bound lies beyond it."""
        repair = self._es.boundary_handler.repair
        mean: Vector = np.array(self._es.gp.pheno(self._es.mean, into_bounds=repair))
        return mean

    @property
    def stds(self) -> Vector:
        stds: Vector = np.array(self._es.stds)
        return stds

    def sample(self, count: int) -> list[Vector]:
        """[count] vectors, one coordinate longer than the encoding where that has a single one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(self._es.ask(count))

    def update(self, vectors: Sequence[Vector], ranks: Sequence[int]) -> None:
        """Moves by the ranks (0: the best) of `population` vectors. Raises ArithmeticError, or an error of numpy's,
        where the numerics broke."""
        # 1. All ranks are equal (all failed, a plateau), and give no direction: grow the step size.
        if max(ranks) == 0:
            if self._es.stds.max() < 1:
                self._es.sigma *= _WIDEN
            return
        # 2. Else ranks are the fitness, which pycma minimises. Equal ones go by the order asked: pycma sorts unstably.
        order = sorted(range(len(ranks)), key=ranks.__getitem__)
        fitness = [0.0] * len(ranks)
        for position, index in enumerate(order):
            fitness[index] = float(position)
        # 3. m <- m + sum of w_i (x_i - m) over the mu best; C and sigma by their paths (Hansen 2016, appendix A). Then
        # keep every option possible.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._es.tell(list(vectors), fitness)
            self._margin()
        if not self._healthy():
            raise ArithmeticError("the distribution has collapsed")

    def _margin(self) -> None:
        """Keeps every option of every choice possible (Hamano et al. 2022, "CMA-ES with Margin", arXiv:2205.13482).

        With the mean of the leading option's coordinate at m_b and another's at m_j, option j beats b with
        probability Φ((m_j - m_b) / s), where s² is the variance of the difference. Where that is below
        α = 1 / (n λ), m_j is raised until it is not; then the choice's coordinates are centred as before, which
        changes no probability. So each gene leaves its favourite in at least one of n λ samples: some gene in
        each generation. Step size and covariance cancel out, so that neither needs a lower bound.
        """
        correlation = np.eye(self._es.N) if self._separable else self._es.sm.correlation_matrix
        covariance = np.outer(self._es.stds, self._es.stds) * correlation
        quantile = NormalDist().inv_cdf(1.0 / (len(self._encoding.dimensions) * self._es.popsize))
        for place in self._encoding.choice_coordinates:
            mean, spread = self._es.mean[place], covariance[place, place]
            best = int(np.argmax(mean))
            raised = np.maximum(mean, mean[best] + quantile * _difference_stds(spread, best))
            self._es.mean[place] = raised + (mean.mean() - raised.mean())

    def _healthy(self) -> bool:
        stds = self._es.stds
        watched = stds[self._numeric] if self._numeric else stds
        return bool(
            np.isfinite([self._es.mean, stds]).all()
            and _COLLAPSED < watched.max() < 1 / _COLLAPSED
            and self._es.sm.condition_number < _CONDITION
        )


def default_population(encoding: Encoding) -> int:
    """Samples to an update (Hansen 2016, table 1)."""
    return 4 + int(3 * math.log(max(encoding.size, 2)))


def _difference_stds(covariance: NDArray[np.float64], best: int) -> NDArray[np.float64]:
    """The standard deviations of each coordinate's difference from coordinate `best`."""
    variances = np.diag(covariance)
    squares = variances + variances[best] - 2 * covariance[best]
    stds: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0.0))
    return stds
