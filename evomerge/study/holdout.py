"""After the search: the parents and the top candidates on the holdout split, which the optimizer never saw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evomerge.errors import TrialError
from evomerge.evaluator.executor import EvalTask
from evomerge.optimize.ordering import spread
from evomerge.scoring.gates import scales, settle
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.store import Store
from evomerge.study.run.trial import Trial

if TYPE_CHECKING:
    from evomerge.study.session import Session

RELEASE = "release"
TOP = 5
"""How many of the best candidates by search score are re-scored."""
POINTS = 10
"""How many points of a front are."""


def release(session: Session) -> Leaderboard:
    """Where the parents, the uniform average and the top candidates stand on the holdout split, under floors that
    the parents' holdout scores settle. `Leaderboard.best()` of it is the winner, if there is one. Of a front, up to
    `POINTS` take the place of the top, spread over it; the others are named."""
    leaderboard = _with_top_in_full(session)
    references = [t for t in leaderboard.trials if t.kind == "reference" and t.state == "complete"]
    top = chosen(leaderboard)
    wanted = [*references, *top]
    left_out = [t.name for t in leaderboard.front() if t not in wanted]
    if left_out:
        told = (
            f"{len(left_out)} of the {len(leaderboard.front())} points of the front are not scored on the holdout items"
        )
        session.observer.note(f"{told}: {', '.join(left_out)}")
    found: dict[int, Trial] = {}
    for trial in session.each(_rescored(session, trial) for trial in wanted):
        found[trial.number] = trial
        session.observer.holdout_scored(trial.name, len(found), len(wanted))
    scored = [found[trial.number] for trial in wanted]
    parents = {t.label: t.slice_scores for t in scored if t.is_parent and t.state == "complete"}
    gates = settle(session.outline.slices, parents)
    result = Leaderboard(scored, gates, scales(parents, gates), traded=leaderboard.traded)
    winner = result.best()
    if winner is not None:
        session.publish(winner, "the winner: the best on the holdout items that passes every floor there", leaderboard)
    session.store.record(
        RELEASE,
        {
            "gates": result.to_data(),
            "trials": [t.number for t in scored],
            "winner": winner.number if winner else None,
            "after": session.spent()[0],
        },
    )
    return result


def chosen(leaderboard: Leaderboard) -> list[Trial]:
    """The searched merges that are worth a score on the holdout split: points of the front, without one the top."""
    front = [t for t in leaderboard.front() if t.kind == "search"]
    if front:
        return [front[at] for at in spread([leaderboard.outcome(t).values for t in front], POINTS)]
    return [t for t in leaderboard.merges() if t.kind == "search"][:TOP]


def _with_top_in_full(session: Session) -> Leaderboard:
    """Where the trials stand once those among the best whose scores are predicted are scored on all search items."""
    tried: set[int] = set()
    while True:
        leaderboard = session.leaderboard()
        parents = {t.digest for t in leaderboard.trials if t.is_parent}
        ranked = [t for t in leaderboard.ranked() if t.kind == "search" and t.ranked and t.digest not in parents]
        guessed = [t for t in ranked[:TOP] if t.state == "stopped" and t.by != "early_stop" and t.number not in tried]
        if not guessed or len(tried) >= 2 * TOP:
            return leaderboard
        tried.add(guessed[0].number)
        session.score_in_full(guessed[0])


def _rescored(session: Session, trial: Trial) -> EvalTask[Trial]:
    """The trial with its holdout scores in place of its search scores; scores of an earlier session are reused."""
    key = holdout_key(trial.number)
    known = session.store.facts.get(key)
    if known is None:
        try:
            measured = yield from session.measure(trial, "holdout")
        except TrialError as error:
            return replace(trial, state="failed", reason=str(error), scores={}, bounds={}, objective=None)
        known = {**measured.to_data(), "objective": measured.objective}
        session.store.record(key, known)
    return replace(trial, **known)


@dataclass(frozen=True)
class Release:
    """What an earlier `release` recorded: the holdout leaderboard, the winner, and after how many trials it was."""

    leaderboard: Leaderboard
    winner: Trial | None
    after: int


def released(store: Store) -> Release | None:
    """The last release, for those who only read."""
    facts = store.facts
    if RELEASE not in facts:
        return None
    release = facts[RELEASE]
    known = {t.number: t for t in rescored(store)}
    scored = [known[n] for n in release["trials"] if n in known]
    winner = known.get(release["winner"])
    return Release(Leaderboard.from_data(scored, release["gates"]), winner, release["after"])


def rescored(store: Store) -> list[Trial]:
    """Every trial that was ever scored on the holdout split, with these scores in place of its search scores."""
    facts = store.facts
    return [replace(t, **facts[holdout_key(t.number)]) for t in store.trials() if holdout_key(t.number) in facts]


def holdout_key(number: int) -> str:
    return f"holdout.{number}"
