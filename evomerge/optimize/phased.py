"""Optimizers one after the other, seen as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from evomerge.optimize.base import Generation, Optimizer, Proposal, Start
from evomerge.types import Genome, Outcome


class Phased(ABC):
    """Hands everything to the active phase, an optimizer, and moves on to the next one when it is exhausted. It is
    exhausted when the last phase is."""

    def __init__(self, start: Start) -> None:
        """Begins the first phase: a subclass sets what `_phases` reads before it comes here."""
        self.start = start
        self._known = list(start.known)
        self._following = self._phases()
        self._active: Optimizer = next(self._following)
        self._move_on()

    @abstractmethod
    def _phases(self) -> Iterator[Optimizer]:
        """Yields the phases. `_known` holds all outcomes of the phases before."""

    @property
    def generation(self) -> Generation:
        return self._active.generation

    @property
    def exhausted(self) -> str | None:
        return self._active.exhausted

    def ask(self) -> Proposal:
        return self._active.ask()

    def recall(self, genome: Genome) -> Proposal:
        return self._active.recall(genome)

    def tell(self, genome: Genome, outcome: Outcome) -> None:
        self._active.tell(genome, outcome)
        self._known.append((genome, outcome))
        self._move_on()

    def _move_on(self) -> None:
        while self._active.exhausted is not None:
            following = next(self._following, None)
            if following is None:
                return
            self._active = following
