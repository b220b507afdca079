"""NSGA-II (Deb et al. 2002), as Optuna has it, with the operators of that paper: simulated binary crossover and
polynomial mutation. Infeasible candidates rank by their total violation behind all others (constrained domination:
section VI). Survivors of one rank are those that stand apart (crowding distance)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover

from evomerge.optimize.optuna_samplers import OptunaSampler, OptunaTrial
from evomerge.optimize.optuna_targets import OptunaTarget
from evomerge.types import Dimension, Genome


class NsgaII(OptunaSampler):
    """Asks for one generation, one by one or all at once. Genomes known before the search take the first places of the
    first generation; where there are more of them, of the next ones."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, *, population: int = 10, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        self._population = population

    def _askable(self) -> int:
        if self.asynchronous:
            return super()._askable()
        return self._population - self._filled - len(self._asked)

    def _n_told(self) -> int:
        return min(self._filled, len(self.history))

    def _n_parents(self) -> int:
        """Parents are the better ones of pairs."""
        return self._population // 2

    @property
    def _filled(self) -> int:
        """How many places of the current generation have an outcome."""
        return (len(self.start.known) + len(self.history)) % self._population

    def _sample(self, seed: int) -> dict[str, Any]:
        # The survivors of the last generations are chosen by a generator that is the same for all genomes of one
        # generation. They are kept in the study, where the sampler that makes the child finds them.
        choosing = self._sampler(int(self._generator(0, 1).integers(2**32)))
        study = self._study(self._sampler(seed))
        choosing.get_parent_population(study, len(self._known) // self._population)
        return study.ask(self._distributions).params

    def _trial(self, number: int, genome: Genome, target: OptunaTarget) -> OptunaTrial:
        generation = {NSGAIISampler._get_generation_key(): number // self._population}
        return OptunaTrial(genome, self._distributions, target, generation)

    def _sampler(self, seed: int) -> NSGAIISampler:
        return NSGAIISampler(
            population_size=self._population,
            # far from the parents, and in all genes: generations are few where an evaluation is a model
            crossover=SBXCrossover(eta=2.0, use_child_gene_prob=1.0),
            mutation=PolynomialMutation(),
            seed=seed,
        )
