"""CMA-ES (Hansen 2016, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772), by the package `cma`.

What a merge search needs besides:

- It learns from **ranks**, feasible candidates first. CMA-ES looks at nothing else.
- **Choices stay open**: every option keeps a least probability, see `distribution.Distribution`.
- **Restarts** take the place of pycma's stop conditions. Where the step size has collapsed, the numerics broke or
  nothing better has come for long, a new distribution starts with a generator of its own. The 1st, 3rd, ... one is
  around the best genome so far, the 2nd, 4th, ... around a random point and with twice as many samples each time
  (Auger & Hansen 2005, "A Restart CMA Evolution Strategy With Increasing Population Size"; the two regimes in turns:
  Hansen 2009, "Benchmarking a BI-Population CMA-ES on the BBOB-2009 Function Testbed").
- **Many genes** are searched without correlations: no budget of a merge search suffices to learn them.
- **Noise**: the best of a generation can be scored again, and count with the mean of their scores, before the
  distribution moves (Hansen et al. 2009, "A Method for Handling Uncertainty in Evolutionary Optimization", section 3).
- **Without a barrier** (`asynchronous`): each genome is drawn from the distribution as it is then, which moves when as
  many results have come as a generation has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.optimize.base import GenomeId, Proposal, Reason, Sequential, identity
from evomerge.optimize.distribution import Distribution, default_population
from evomerge.optimize.ordering import FAILED, RankKey, rank_key, ranks
from evomerge.space.vector import Encoding, Vector
from evomerge.types import Dimension, Genome, Outcome

_SEPARABLE = 100
"""From so many coordinates on, no correlations are learned."""

_SIGMA, _SHARE = 0.2, 1 / 3
"""The initial step size, as a share of each gene's range, and how far the mean of the first samples may go, as a share
of the way to a genome that is known to be worse."""

_PATIENCE, _PATIENCE_GROWTH = 10, 30
"""A restart follows after _PATIENCE + _PATIENCE_GROWTH * coordinates / samples generations without anything better."""


class CmaEs(Sequential):
    """Asks for the samples of one generation, one by one or all at once, and updates the distribution once all are
    told."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        *,
        population: int | str = "auto",
        sigma: float | str = "auto",
        repeats: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(dimensions, seed, **common)
        self._encoding = Encoding(self.dimensions)
        self._sigma, self._repeats = sigma, repeats
        self._population = None if population == "auto" else int(population)
        self._proposed: set[GenomeId] = set()
        self._novelty_generator = self._generator(0, 1)
        self._restarts = self._stagnation = 0
        self._waiting: list[Sample] = []
        self._in_flight: list[Sample] = []
        self._generation: list[Sample] = []
        self._best: RankKey | None = None
        rounds = math.ceil(default_population(self._encoding) / self.num_workers)
        self._first = self._population or self.num_workers * rounds
        self._start(self._encoding.encode(self._initial()), self._generator(0), self._first)

    def _askable(self) -> int:
        return super()._askable() if self.asynchronous else len(self._waiting)

    def _n_told(self) -> int:
        return 0 if self.asynchronous else self._generation_told

    def _n_parents(self) -> int:
        """The parents of the next generation."""
        return self._distribution.parents

    def _proposal(self, genome: Genome) -> Proposal:
        if self._repeated:
            return Proposal(genome, Reason.RE_EVALUATION, label="scored again, as scores are noisy")
        return Proposal(genome)

    def _propose(self) -> Genome:
        if not self._waiting:
            self._waiting = self._samples(1)
        self._in_flight.append(self._waiting.pop(0))
        return self._in_flight[-1].genome

    def _learn(self, outcome: Outcome) -> None:
        genome = self.history[-1][0]
        place = next(i for i, sample in enumerate(self._in_flight) if sample.genome == genome)
        sample = self._in_flight.pop(place)
        sample.outcomes.append(outcome)
        self._generation_told += 1
        if not self._repeated:
            self._generation.append(sample)
        complete = len(self._generation) == self._distribution.population
        if not complete if self.asynchronous else (self._waiting or self._in_flight):
            return
        if self._repeats and not self._repeated and not self.asynchronous:
            self._repeat()
        else:
            self._update()

    def _repeat(self) -> None:
        """Asks for the best of the generation once more."""
        best = sorted(self._generation, key=lambda sample: rank_key(sample.outcome))
        self._waiting, self._repeated, self._generation_told = best[: self._repeats], True, 0

    def _update(self) -> None:
        """Moves the distribution by the generation, or starts a new one; then draws the next generation."""
        # 1. Count the generations without anything better.
        outcomes = [sample.outcome for sample in self._generation]
        best = min(map(rank_key, outcomes))
        self._stagnation = 0 if self._best is None or best < self._best else self._stagnation + 1
        self._best = best if self._best is None else min(best, self._best)
        # 2. Move mean, covariance and step size towards the better samples; only their ranks count.
        # 3. Start anew where that broke, or nothing better has come for long.
        try:
            self._distribution.update([sample.vector for sample in self._generation], ranks(outcomes))
            if self._stagnation > self._patience:
                raise ArithmeticError("nothing better has come for long")
            self._next()
        except (ArithmeticError, AssertionError, RuntimeError, ValueError):  # LinAlgError is a ValueError
            self._restart()

    def _next(self, with_mean: bool = False) -> None:
        """Draws a generation; `with_mean`: its first genome is the initial mean itself. Without a barrier, samples are
        drawn when they are asked for."""
        self._generation = []
        self._repeated, self._generation_told = False, 0
        count = self._distribution.population
        self._waiting = self._samples(int(with_mean) if self.asynchronous else count, with_mean)

    def _samples(self, count: int, with_mean: bool = False) -> list[Sample]:
        vectors = self._distribution.sample(count) if count else []
        if with_mean:
            vectors[0] = self._distribution.mean
        samples = []
        for vector in vectors:
            sampled = self._encoding.decode(vector[: self._encoding.size])
            genome = self._novel(sampled, self._proposed, self._novelty_generator)
            self._proposed.add(identity(genome))
            samples.append(Sample(genome, self._moved(vector, genome)))
        return samples

    def _moved(self, vector: Vector, genome: Genome) -> Vector:
        """`vector`, with each choice's largest coordinate moved to the option that `genome` has."""
        vector = vector.copy()
        target = self._encoding.encode(genome)
        for place in self._encoding.choice_coordinates:
            largest, chosen = place.start + np.argmax(vector[place]), place.start + np.argmax(target[place])
            vector[[largest, chosen]] = vector[[chosen, largest]]
        return vector

    def _restart(self) -> None:
        """Starts a new distribution: in turns around the best genome, and around a random point with a population of
        first * 2^ceil(restarts / 2)."""
        self._restarts += 1
        generator = self._generator(self._restarts)
        mean, population = generator.random(self._encoding.size), self._first
        best = min(self.history, key=lambda trial: rank_key(trial[1]))
        if self._restarts % 2 and rank_key(best[1])[0] != FAILED:
            mean = self._encoding.encode(best[0])
        else:
            population = self._first * 2 ** math.ceil(self._restarts / 2)
        self._start(mean, generator, population)

    def _start(self, mean: Vector, generator: np.random.Generator, population: int) -> None:
        """Makes a distribution around `mean`, and draws its first generation."""
        separable = self._encoding.size >= _SEPARABLE
        sigma = self._first_step() if self._sigma == "auto" else float(self._sigma)
        self._distribution = Distribution(self._encoding, mean, sigma, population, generator, separable)
        self._patience = _PATIENCE + _PATIENCE_GROWTH * self._encoding.size / self._distribution.population
        self._best, self._stagnation = None, 0
        self._next(with_mean=not self._restarts)

    def _first_step(self) -> float:
        """The initial step size: _SIGMA, and for the first distribution less where what is known says that this goes
        too far.

        Around the base, where all weights are at their bound of 0, each sample has more of every source, and their mean
        is a merge like those of the ladder of equal weights. So it stays within _SHARE of the way to each known genome
        that is worse than the initial one."""
        initial = self._initial()
        outcomes = {identity(genome): outcome for genome, outcome in self.start.known}
        if self._restarts or identity(initial) not in outcomes:
            return _SIGMA
        mean, key = self._encoding.encode(initial), rank_key(outcomes[identity(initial)])
        # 1. Where the mean of the samples is, for a step of 1: E|N(0, 1)| = sqrt(2 / pi) inside of each bound. (pycma
        # bends samples towards a bound: it is less.)
        numeric = np.isin(np.arange(mean.size), self._encoding.numeric_coordinates)
        moved = np.sqrt(2 / np.pi) * numeric * ((mean <= 0).astype(float) - (mean >= 1))
        # 2. How far along the way to each worse genome that is, as a share of the way.
        shares = [0.0]
        for genome, outcome in self.start.known:
            way = numeric * (self._encoding.encode(genome) - mean)
            if rank_key(outcome) > key and way.any():
                shares.append(float(moved @ way / (way @ way)))
        return min(_SIGMA, _SHARE / max(shares)) if max(shares) > 0 else _SIGMA


@dataclass
class Sample:
    """A genome with the vector that it was drawn as, and its outcomes, one for each time that it was asked."""

    genome: Genome
    vector: Vector
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        """The mean of its outcomes; the first one where any of them failed."""
        first, *others = self.outcomes
        if not others or any(o.failed for o in self.outcomes):
            return first
        objective, shortfall = (
            math.fsum(values) / len(self.outcomes)
            for values in zip(*((o.objective, o.shortfall) for o in self.outcomes), strict=True)
        )
        return Outcome(feasible=shortfall == 0, objective=objective, shortfall=shortfall)
