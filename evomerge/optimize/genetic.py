"""NSGA-II (Deb et al. 2002) and NSGA-III (Deb & Jain 2014), as Optuna has them, with the operators of the first paper:
simulated binary crossover and polynomial mutation. Infeasible candidates rank by their total violation behind all
others (constrained domination: Deb et al. 2002, section VI)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from optuna.samplers import NSGAIIISampler, NSGAIISampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover

from evomerge.optimize.lessons import OptunaTarget
from evomerge.optimize.optuna_samplers import _Sampled, _Told
from evomerge.types import Dimension, Genome

Sampler = NSGAIISampler | NSGAIIISampler


class _Genetic(_Sampled):
    """Asks for one generation, one by one or all at once. What is known before the search takes the first places of the
    first generation; with more of it than these, of the next ones."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, *, population: int = 10, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        self._population = population

    def _room(self) -> int:
        if self.asynchronous:
            return super()._room()
        return self._population - self._told_of_generation - len(self._asked)

    @property
    def rivals(self) -> int:
        return min(self._told_of_generation, len(self.history))

    @property
    def places(self) -> int:
        """Parents are the better ones of pairs."""
        return self._population // 2

    @property
    def _told_of_generation(self) -> int:
        return (len(self.start.known) + len(self.history)) % self._population

    def _sample(self, seed: int) -> dict[str, Any]:
        # Who survived the last generations is chosen by a generator that is the same for all who are asked in one, and
        # kept in the study, where the sampler that makes the child finds it.
        choosing = self._sampler(int(self._generator(0, 1).integers(2**32)))
        study = self._study(self._sampler(seed))
        choosing.get_parent_population(study, len(self._known) // self._population)
        return study.ask(self._distributions).params

    def _told(self, number: int, genome: Genome, lesson: OptunaTarget) -> _Told:
        generation = {self._class._get_generation_key(): number // self._population}
        return _Told(genome, self._distributions, lesson, generation)

    @property
    @abstractmethod
    def _class(self) -> type[Sampler]: ...

    def _sampler(self, seed: int) -> Sampler:
        return self._class(
            population_size=self._population,
            # wide, and of all genes: generations are few where an evaluation is a model
            crossover=SBXCrossover(eta=2.0, use_child_gene_prob=1.0),
            mutation=PolynomialMutation(),
            seed=seed,
            **self._own,
        )

    @property
    def _own(self) -> dict[str, Any]:
        return {}


class NsgaII(_Genetic):
    """Survivors of one rank are those that stand apart (crowding distance)."""

    @property
    def _class(self) -> type[Sampler]:
        return NSGAIISampler


class NsgaIII(_Genetic):
    """Survivors of one rank are those near to reference points that few are near to."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, *, population: int = 20, **common: Any) -> None:
        super().__init__(dimensions, seed, population=population, **common)

    @property
    def _class(self) -> type[Sampler]:
        return NSGAIIISampler

    @property
    def _own(self) -> dict[str, Any]:
        """The finest grid of reference points (Das & Dennis 1998) of which there are no more than candidates; halves at
        the least, so that there are others than the best on a single slice."""
        cuts = 2
        while self.objectives > 1 and math.comb(self.objectives + cuts, cuts + 1) <= self._population:
            cuts += 1
        return {"dividing_parameter": cuts}
