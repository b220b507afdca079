"""The main loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from evomerge.evaluator.executor import EvalTask
from evomerge.optimize.base import Optimizer, Start
from evomerge.optimize.replay import recall, replay_interleaved
from evomerge.study.run.trial import Trial
from evomerge.study.session import Session


@dataclass(frozen=True)
class Budget:
    """Totals over all sessions of a run: trials (references and failures count), and seconds spent in them (with
    several workers, seconds that passed); None is no limit."""

    trials: int | None
    seconds: float | None = None

    def left(self, session: Session, at_once: int, in_flight: int = 0) -> int:
        """How many of `at_once` trials may be started while others are in flight."""
        trials, seconds = session.spent()
        if self.seconds is not None and seconds >= self.seconds:
            return 0
        return at_once if self.trials is None else max(0, min(at_once, self.trials - trials - in_flight))


def run(session: Session, make: Callable[[Start], Optimizer], budget: Budget) -> None:
    """Score the references, bring the optimizer to where the recorded trials left it, then search until the budget is
    spent or the optimizer is exhausted."""
    session.score_references()
    optimizer = make(session.start())
    history = session.history()
    replay_interleaved(optimizer, history)
    if session.plan.spec.asynchronous:
        _without_generations(session, optimizer, budget)
    else:
        _by_generations(session, optimizer, budget, len(history))
    if optimizer.exhausted is not None:
        session.observer.note(f"nothing is left to propose: {optimizer.exhausted}")


def _by_generations(session: Session, optimizer: Optimizer, budget: Budget, told: int) -> None:
    """Ask as much as can be, score that, tell it in the order asked; `told` outcomes are told already."""
    together = session.economy is not None or session.scorer.hands > 1
    while count := budget.left(session, _askable(optimizer) if together else min(1, _askable(optimizer))):
        generation = optimizer.generation
        trials = session.left_behind(told)[:count]
        for number, trial in enumerate(trials, told):
            recall(optimizer, trial.genome, number)
        trials += [_begun(session, optimizer) for _ in range(count - len(trials))]
        for done in session.evaluate_all(trials, generation.told, generation.parents):
            optimizer.tell(done.genome, session.outcome(done))
        told += count


def _without_generations(session: Session, optimizer: Optimizer, budget: Budget) -> None:
    """Ask whenever a worker is free, tell whatever ends. First come the trials that a killed process left in flight:
    they were asked."""
    left_behind = session.in_flight()
    in_flight = 0

    def start() -> EvalTask[Trial] | None:
        nonlocal in_flight
        if not budget.left(session, 1, in_flight) or not (left_behind or _askable(optimizer) > 0):
            return None
        in_flight += 1
        return session.evaluate_alone(left_behind.pop(0) if left_behind else _begun(session, optimizer))

    for done in session.drive(start):
        in_flight -= 1
        optimizer.tell(done.genome, session.outcome(done))


def _begun(session: Session, optimizer: Optimizer) -> Trial:
    """A new trial of the next genome."""
    return session.begin_search(optimizer.ask())


def _askable(optimizer: Optimizer) -> int:
    return optimizer.generation.askable
