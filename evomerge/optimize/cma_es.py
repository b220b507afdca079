"""CMA-ES (Hansen 2016, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772), by the package `cma`.

Five things are done around it:

- It is told **ranks**, feasible candidates first, which is all that CMA-ES looks at. A generation in which all
  rank the same (all failed, a plateau) says nothing about where to go: the distribution stays, and widens.
- It draws from a **private generator**, so that an evaluation that reseeds numpy cannot steer the search.
- **Choices stay open.** CMA-ES would settle each choice as soon as one option leads, and never come back. After
  Hamano et al. 2022 ("CMA-ES with Margin", arXiv:2205.13482) the mean is held where every other option keeps a
  least probability, see `_margin`.
- Where all genes are choices, a genome that was proposed before gives way to a new one nearby.
- **Restarts** take the place of pycma's stop conditions, which read ranks as if they were scores: when the step
  size has collapsed or the numerics broke, a new distribution starts with a generator of its own: the 1st, 3rd,
  ... time around the best genome so far, the 2nd, 4th, ... time around a random point.

Genes are scaled separately as well as jointly (`CMA_diagonal_decoding`: Akimoto & Hansen 2020, "Diagonal
Acceleration for Covariance Matrix Adaptation Evolution Strategies"): nearer after 300 trials in 10 and 20 genes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.optimize.base import GenomeId, Sequential, identity
from evomerge.optimize.ranking import FAILED, rank_key, ranks
from evomerge.space.vector import Encoding, Vector
from evomerge.types import Dimension, Genome, Outcome

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no matplotlib to plot with
    import cma

_COLLAPSED = 1e-5
"""A distribution narrower than this in all numeric genes, as a share of their ranges, has nothing left to find.
Where all genes are choices, whose scale is free, this and its inverse keep the numbers in a sane range."""

_CONDITION = 1e14
"""Beyond this condition number of the covariance matrix, its decomposition is noise (pycma's tolconditioncov)."""

_WIDEN = 1.5
"""Growth of the step size on a plateau (pycma's manage_plateaus)."""


class CmaEs(Sequential):
    """Asks for the samples of one generation, one by one or all at once, and updates the distribution once all are
    told."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        *,
        population: int | str = "auto",
        sigma: float = 0.2,
        **common: Any,
    ) -> None:
        super().__init__(dimensions, seed, **common)
        self._encoding = Encoding(self.dimensions)
        self._population, self._sigma = population, sigma
        self._numeric = list(self._encoding.numeric_coordinates)
        self._proposed: set[GenomeId] = set()
        self._walk = self._generator(0, 1)
        self._restarts = 0
        self._es: Any = None
        self._start(self._encoding.encode(self._initial()), self._generator(0))
        self._sample(with_mean=True)

    def _room(self) -> int:
        if self.asynchronous:
            return super()._room()
        return len(self._genomes) - self.rivals - len(self._asked)

    @property
    def rivals(self) -> int:
        return len(self._outcomes)

    @property
    def places(self) -> int:
        """The parents of the next generation."""
        return int(self._es.sp.weights.mu)

    def _propose(self) -> Genome:
        return self._genomes[self.rivals + len(self._asked)]

    def _learn(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        if len(self._outcomes) < len(self._genomes):
            return
        try:
            self._update(ranks(self._outcomes))
            self._sample()
        except (ArithmeticError, AssertionError, RuntimeError, ValueError):  # LinAlgError is a ValueError
            self._restart()
            self._sample()

    def _start(self, mean: Vector, generator: np.random.Generator) -> None:
        """A fresh distribution around `mean`. A choice's coordinates start `sigma` apart: its initial option
        then leads each other option with probability Φ(1/√2) = 0.76, whatever `sigma` is."""
        for place in self._encoding.choice_coordinates:
            mean[place] = self._sigma * mean[place]
        # pycma does not support one coordinate; a second one, without effect, is
        width = max(self._encoding.size, 2)
        numeric = np.isin(np.arange(width), self._numeric)
        bounds = [np.where(numeric, 0.0, -np.inf), np.where(numeric, 1.0, np.inf)] if self._numeric else None
        options: dict[str, Any] = {
            # pycma takes a sample to be B D z, with C = B D² Bᵀ. Which signs an eigenvector in B has is up to the
            # processor and its number of threads; so z = Bᵀ z', as normal as z', makes it the symmetric root of C
            # times z', and a run can be resumed elsewhere
            "randn": lambda *shape: generator.standard_normal(shape) @ self._es.sm.B,
            "seed": np.nan,  # leave numpy's global generator alone
            "bounds": bounds or [None, None],
            "CMA_diagonal_decoding": 1,
            "CMA_mirrors": False,  # a small population would get mirrored samples, which need all of it at once
            "verbose": -10,  # print nothing, write no log, read no signals file
            "verb_log": 0,
            "verb_disp": 0,
        }
        if self._population != "auto":
            options["popsize"] = self._population
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._es = cma.CMAEvolutionStrategy(np.pad(mean, (0, width - mean.size)), self._sigma, options)

    def _sample(self, with_mean: bool = False) -> None:
        """The next generation; `with_mean`: its first genome is the initial mean itself."""
        vectors = self._es.ask()
        if with_mean:
            vectors[0] = np.array(self._es.x0)
        self._vectors: list[Vector] = []
        self._genomes: list[Genome] = []
        self._outcomes: list[Outcome] = []
        for vector in vectors:
            sampled = self._encoding.decode(vector[: self._encoding.size])
            genome = self._novel(sampled, self._proposed, self._walk)
            self._proposed.add(identity(genome))
            self._genomes.append(genome)
            self._vectors.append(self._moved(vector, genome))

    def _moved(self, vector: Vector, genome: Genome) -> Vector:
        """`vector` with, in each choice, the largest coordinate at the option that `genome` has."""
        vector = vector.copy()
        target = self._encoding.encode(genome)
        for place in self._encoding.choice_coordinates:
            largest, meant = place.start + np.argmax(vector[place]), place.start + np.argmax(target[place])
            vector[[largest, meant]] = vector[[meant, largest]]
        return vector

    def _update(self, places: list[int]) -> None:
        """Moves the distribution by the order of the generation. Raises where it is of no further use."""
        if max(places) == 0:
            if self._es.stds.max() < 1:
                self._es.sigma *= _WIDEN
            return
        order = sorted(range(len(places)), key=places.__getitem__)
        fitness = [0.0] * len(places)
        for position, index in enumerate(order):
            fitness[index] = float(position)  # equal ones in the order asked: pycma sorts unstably
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._es.tell(self._vectors, fitness)
            self._margin()
        if not self._healthy():
            raise ArithmeticError("the distribution has collapsed")

    def _margin(self) -> None:
        """Keeps every option of every choice possible.

        With the mean of the leading option's coordinate at m_b and another's at m_j, option j beats b with
        probability Φ((m_j - m_b) / s), where s² is the variance of the difference. Where that is below
        α = 1 / (n λ), m_j is raised until it is not; then the choice's coordinates are centred as before, which
        changes no probability. So each gene leaves its favourite in at least one of n λ samples: some gene in
        each generation. Step size and covariance cancel out, so that neither has to be held from below.
        """
        covariance = np.outer(self._es.stds, self._es.stds) * self._es.sm.correlation_matrix
        quantile = NormalDist().inv_cdf(1.0 / (len(self.dimensions) * self._es.popsize))
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

    def _restart(self) -> None:
        self._restarts += 1
        generator = self._generator(self._restarts)
        mean = generator.random(self._encoding.size)
        best = min(self.history, key=lambda trial: rank_key(trial[1]))
        if self._restarts % 2 and rank_key(best[1])[0] != FAILED:
            mean = self._encoding.encode(best[0])
        self._start(mean, generator)


def _difference_stds(covariance: NDArray[np.float64], best: int) -> NDArray[np.float64]:
    """The standard deviations of each coordinate's difference from coordinate `best`."""
    variances = np.diag(covariance)
    squares = variances + variances[best] - 2 * covariance[best]
    stds: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0.0))
    return stds
