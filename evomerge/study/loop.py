"""The main loop."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.optimize.base import Optimizer
from evomerge.optimize.replay import replay
from evomerge.study.session import Session


@dataclass(frozen=True)
class Budget:
    """Totals over all sessions of a run: trials (references and failures count), and seconds spent in them; None is
    no limit."""

    trials: int | None
    seconds: float | None = None

    def left(self, session: Session) -> bool:
        trials, seconds = session.spent()
        more = self.trials is None or trials < self.trials
        return more and (self.seconds is None or seconds < self.seconds)


def run(session: Session, optimizer: Optimizer, budget: Budget) -> None:
    """Score the references, bring the optimizer to where the recorded trials left it, then search."""
    session.score_references()
    replay(optimizer, session.history())
    while budget.left(session):
        genome = optimizer.ask()
        trial = session.next_trial(genome)
        done = session.evaluate(trial)
        optimizer.tell(genome, session.outcome(done))
