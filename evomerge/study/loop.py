"""The main loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evomerge.evaluator.executor import run_all, run_tasks
from evomerge.evaluator.jobs import EvalTask
from evomerge.optimize.base import Generation, Optimizer, Start
from evomerge.optimize.replay import recall, replay_interleaved
from evomerge.study.run.trial import Trial
from evomerge.study.session import Session

_WORTH_A_LOOK = 5
"""In fewer trials a search finds nothing better."""


@dataclass(frozen=True)
class Budget:
    """Totals over all sessions of a run: trials (references and failures count), and seconds spent in them (with
    several workers, seconds that passed), and items of the search split on which trials were scored (`Trials.n_items`);
    None is no limit."""

    trials: int | None
    seconds: float | None = None
    items: int | None = None

    def to_data(self) -> dict[str, Any]:
        """The limits as the store keeps them. Older runs know none of items."""
        limits = {"trials": self.trials, "seconds": self.seconds}
        return limits if self.items is None else {**limits, "items": self.items}

    def nearly(self) -> Budget | None:
        """Nine tenths of it; None where the last tenth is fewer than `_WORTH_A_LOOK` trials."""
        if self.trials is not None and self.trials // 10 < _WORTH_A_LOOK:
            return None
        trials, items = (None if n is None else n - n // 10 for n in (self.trials, self.items))
        return Budget(trials, None if self.seconds is None else 0.9 * self.seconds, items)

    def without(self, trials: int) -> Budget:
        """What is left of it where so many trials are kept for later; of other limits a twentieth is."""
        if not trials:
            return self
        items = None if self.items is None else self.items - self.items // 20
        seconds = None if self.seconds is None else 0.95 * self.seconds
        return Budget(None if self.trials is None else self.trials - trials, seconds, items)

    def left(self, session: Session, at_once: int, in_flight: int = 0) -> int:
        """How many of `at_once` trials may be started while others are in flight."""
        trials, seconds = session.trials.spent()
        if self.seconds is not None and seconds >= self.seconds:
            return 0
        if self.items is not None and session.trials.n_items >= self.items:
            return 0
        return at_once if self.trials is None else max(0, min(at_once, self.trials - trials - in_flight))


def run(
    session: Session,
    make: Callable[[Start], Optimizer],
    budget: Budget,
    between: Callable[[Session, Budget], None] = lambda session, budget: None,
) -> None:
    """Scores the references, brings the optimizer to where the recorded trials left it, then searches until the budget
    is spent or the optimizer is exhausted. `between` is called before each generation, where there are some."""
    session.score_references()
    optimizer = make(session.start())
    history = session.history()
    replay_interleaved(optimizer, history)
    session.observer.recorded(session.leaderboard)
    session.observer.stage("search", session.trials.spent()[0], budget.trials)
    if session.plan.spec.asynchronous:
        _asynchronously(session, optimizer, budget)
    else:
        _by_generations(session, optimizer, budget, len(history), between)
    if optimizer.exhausted is not None:
        session.observer.note(f"nothing is left to propose: {optimizer.exhausted}")


def _by_generations(
    session: Session,
    optimizer: Optimizer,
    budget: Budget,
    n_told: int,
    between: Callable[[Session, Budget], None],
) -> None:
    """Asks as much as can be, scores that, and tells it in the order asked; `n_told` outcomes are told already."""
    while count := budget.left(session, _askable(optimizer, session)):
        between(session, budget)
        generation = optimizer.generation
        number = _generation(session, n_told, generation)
        trials = session.trials.searched[n_told:][:count]  # left by a killed process
        for number, trial in enumerate(trials, n_told):
            recall(optimizer, trial.genome, number)
        trials += [session.begin(optimizer.ask(), number) for _ in range(count - len(trials))]
        for done in _scored(session, trials, generation):
            optimizer.tell(done.genome, session.outcome(done))
        n_told += count


def _generation(session: Session, n_told: int, generation: Generation) -> int | None:
    """The number of a generation of which some may be told already; None in a run that did not count from its
    beginning."""
    last = session.trials.searched[n_told - 1].generation if n_told else 0
    return None if last is None else last + (generation.told == 0)


def _scored(session: Session, trials: list[Trial], generation: Generation) -> list[Trial]:
    """A generation's trials, ended, in the order asked."""
    session.race(trials, generation)
    running = [trial for trial in trials if trial.state == "running"]
    # After a race one after the other: they are stored in the order asked.
    at_once = 1 if session.racer is not None else None
    ended = {done.number: done for done in run_all(session.executor, (_ended(session, t) for t in running), at_once)}
    return [ended.get(trial.number, trial) for trial in trials]


def _asynchronously(session: Session, optimizer: Optimizer, budget: Budget) -> None:
    """Asks whenever a worker is free, tells whatever ends. First come the trials that a killed process left in flight:
    they were asked."""
    left_behind = session.trials.in_flight()
    in_flight = 0

    def start() -> EvalTask[Trial] | None:
        nonlocal in_flight
        if not budget.left(session, 1, in_flight) or not (left_behind or optimizer.generation.askable > 0):
            return None
        in_flight += 1
        return _ended(session, left_behind.pop(0) if left_behind else session.begin(optimizer.ask()))

    for done in run_tasks(session.executor, start):
        in_flight -= 1
        optimizer.tell(done.genome, session.outcome(done))


def _ended(session: Session, trial: Trial) -> EvalTask[Trial]:
    """Scores a trial on its route, and ends it."""
    result = yield from session.route(trial)
    return session.end(trial, result)


def _askable(optimizer: Optimizer, session: Session) -> int:
    askable = optimizer.generation.askable
    together = session.racer is not None or session.executor.num_workers > 1
    return askable if together else min(1, askable)
