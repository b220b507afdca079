"""The main loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evomerge.optimize.base import Optimizer, Start
from evomerge.optimize.replay import replay
from evomerge.study.session import Session


@dataclass(frozen=True)
class Budget:
    """Totals over all sessions of a run: trials (references and failures count), and seconds spent in them; None is
    no limit."""

    trials: int | None
    seconds: float | None = None

    def left(self, session: Session, at_once: int) -> int:
        """How many of `at_once` trials may be started."""
        trials, seconds = session.spent()
        if self.seconds is not None and seconds >= self.seconds:
            return 0
        return at_once if self.trials is None else max(0, min(at_once, self.trials - trials))


def run(session: Session, make: Callable[[Start], Optimizer], budget: Budget) -> None:
    """Score the references, bring the optimizer to where the recorded trials left it, then search until the budget is
    spent or the optimizer is exhausted."""
    session.score_references()
    optimizer = make(session.start())
    replay(optimizer, session.history())
    while count := budget.left(session, optimizer.open if session.economy else min(1, optimizer.open)):
        rivals, places = optimizer.rivals, optimizer.places
        genomes = [optimizer.ask() for _ in range(count)]
        trials = session.next_trials(genomes)
        for genome, done in zip(genomes, session.evaluate_all(trials, rivals, places), strict=True):
            optimizer.tell(genome, session.outcome(done))
    if optimizer.exhausted is not None:
        session.observer.note(f"nothing is left to propose: {optimizer.exhausted}")
