"""After the search: the parents and the top candidates on the holdout split, which the optimizer never saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import TrialError
from evomerge.evaluator.executor import run_all
from evomerge.evaluator.jobs import EvalTask
from evomerge.optimize.ordering import spread
from evomerge.scoring.gates import scales, settle
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.release import (
    POINTS,
    TOP,
    failed_on_holdout,
    record_holdout,
    record_release,
    with_holdout_scores,
)
from evomerge.study.run.trial import Trial
from evomerge.study.session import Session


def release(session: Session, budget: Mapping[str, Any]) -> Leaderboard:
    """Ranks the parents, the uniform average and the top candidates by their holdout scores, under floors that the
    parents' holdout scores settle. `Leaderboard.best()` of it is the winner, if there is one. Of a front, up to
    `POINTS` take the place of the top, spread over it; the others are named.

    A function of the trials as they ended in the search: what an interrupted session has scored for it is used, and
    what a release of a smaller budget had scored in full counts only where it is reached again. `budget` is written
    down with it.
    """
    leaderboard = _with_top_in_full(session)
    references = [t for t in leaderboard.trials if t.kind == "reference" and t.state == "complete"]
    wanted = [*references, *candidates(leaderboard)]
    _name_points_left_out(session, leaderboard, wanted)
    rescored: dict[int, Trial] = {}
    session.observer.stage("holdout", 0, len(wanted))
    for trial in run_all(session.executor, (_rescored(session, trial) for trial in wanted)):
        rescored[trial.number] = trial
        session.observer.stage("holdout", len(rescored), len(wanted), trial.name)
    trials = [rescored[trial.number] for trial in wanted]
    parents = {t.label: t.slice_scores for t in trials if t.is_parent and t.state == "complete"}
    gates = settle(session.executor.info.slices, parents)
    result = Leaderboard(Floors(gates, scales(parents, gates), traded=leaderboard.floors.traded), trials)
    winner = result.best()
    record_release(session.store, result, winner, session.trials.spent()[0], budget)
    if winner is not None:
        publish(session, winner)
    return result


def publish(session: Session, winner: Trial) -> None:
    """Writes the winner to the run's `best.yaml`."""
    session.trials.publish(winner, "the winner: the best on the holdout items that passes every floor there")


def candidates(leaderboard: Leaderboard) -> list[Trial]:
    """The searched merges that are worth a score on the holdout split: points of the front, without one the top."""
    front = [t for t in leaderboard.front() if t.kind == "search"]
    if front:
        return [front[at] for at in spread([leaderboard.outcome(t).values for t in front], POINTS)]
    return [t for t in leaderboard.merges() if t.kind == "search"][:TOP]


def _with_top_in_full(session: Session) -> Leaderboard:
    """The trials as they ended, in which those are scored on all search items whose predicted scores are among the
    best, one after the other."""
    store, ended = session.store, session.trials.as_ended
    leaderboard = Leaderboard(ended.floors, ended.trials)
    parents = {t.digest for t in leaderboard.trials if t.is_parent}
    tried: set[int] = set()
    while len(tried) < 2 * TOP:
        ranked = [t for t in leaderboard.ranked() if t.kind == "search" and t.ranked and t.digest not in parents]
        top = [t for t in ranked[:TOP] if t.state == "pruned" and t.pruned_by != "early_stop"]
        left = [t for t in top if t.number not in tried]
        if not left:
            break
        trial, total = left[0], len(tried) + len(left)  # more may follow: scores fall
        session.observer.stage("best in full", len(tried), total)
        tried.add(trial.number)
        if store.promoted(trial) is trial:
            session.score_in_full(trial)
        leaderboard.put(store.promoted(trial))
        session.observer.stage("best in full", len(tried), total, trial.name)
    return leaderboard


def _name_points_left_out(session: Session, leaderboard: Leaderboard, wanted: list[Trial]) -> None:
    front = leaderboard.front()
    left_out = [trial.name for trial in front if trial not in wanted]
    if left_out:
        count = f"{len(left_out)} of the {len(front)} points of the front"
        session.observer.note(f"{count} are not scored on the holdout items: {', '.join(left_out)}")


def _rescored(session: Session, trial: Trial) -> EvalTask[Trial]:
    """The trial with its holdout scores in place of its search scores; scores of an earlier session are reused."""
    known = with_holdout_scores(session.store, trial)
    if known is not None:
        return known
    try:
        result = yield from session.trials.measure(trial, "holdout")
    except TrialError as error:
        return failed_on_holdout(trial, str(error))
    record_holdout(session.store, trial, result)
    scored = with_holdout_scores(session.store, trial)
    assert scored is not None
    return scored
