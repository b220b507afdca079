"""Optimizers that follow a plan: one generator of batches, which ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Generator, Iterable, Sequence
from typing import Any

from evomerge.optimize.base import GenomeId, Sequential, identity
from evomerge.optimize.ordering import RankKey, rank_key
from evomerge.types import Dimension, Genome, Outcome

Batches = Generator[Sequence[Genome], None, str]
"""Genomes to score, a batch at a time; returns why there are no more."""


class Planned(Sequential):
    """Proposes the batches of `_plan`, each of them at once, and goes on with the plan when all outcomes of a batch are
    told.

    A genome that was proposed before, or is known from the start, is not proposed again: the plan finds its recorded
    outcome.
    """

    def __init__(self, dimensions: Sequence[Dimension], seed: int, **common: Any) -> None:
        """Starts the plan: a subclass sets the attributes that its plan reads before this."""
        super().__init__(dimensions, seed, **common)
        self._outcomes: dict[GenomeId, Outcome] = {identity(genome): outcome for genome, outcome in self.start.known}
        self._batches = self._plan()
        self._batch: list[Genome] = []
        self._batch_told = 0
        self._ended: str | None = None
        self._go_on()

    @abstractmethod
    def _plan(self) -> Batches:
        """Yields batches of tidy genomes. After each one, the outcomes of all its genomes are known (`_key`)."""

    def _askable(self) -> int:
        return len(self._batch) - self._batch_told - len(self._asked)

    def _n_told(self) -> int:
        return self._batch_told

    @property
    def exhausted(self) -> str | None:
        return self._ended

    def _propose(self) -> Genome:
        return self._batch[self._batch_told + len(self._asked)]

    def _learn(self, outcome: Outcome) -> None:
        self._outcomes[identity(self.history[-1][0])] = outcome
        self._batch_told += 1
        self._go_on()

    def _go_on(self) -> None:
        """Takes the next batch that holds a new genome, once the last one is told."""
        while self._ended is None and self._batch_told == len(self._batch):
            try:
                wanted = next(self._batches)
            except StopIteration as end:
                self._ended, wanted = end.value, ()
            distinct = {identity(genome): genome for genome in wanted}
            self._batch = [genome for name, genome in distinct.items() if name not in self._outcomes]
            self._batch_told = 0

    def _key(self, genome: Genome) -> RankKey:
        """The rank key of a scored genome."""
        return rank_key(self._outcomes[identity(genome)])

    def _best(self, genomes: Iterable[Genome]) -> Genome:
        """The best of scored genomes; the first of equal ones."""
        return min(genomes, key=self._key)


def gene_groups(dimensions: Sequence[Dimension], axes: Collection[str]) -> list[list[Dimension]]:
    """The dimensions of each gene in groups: separate by their places on `axes`, together over all other axes."""
    groups: dict[tuple[str, ...], list[Dimension]] = {}
    for dimension in dimensions:
        places = [f"{axis} {place}" for axis, place in dimension.place.items() if axis in axes]
        groups.setdefault((dimension.gene or dimension.key, *places), []).append(dimension)
    return list(groups.values())
