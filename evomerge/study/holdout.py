"""After the search: the parents and the finalists on the holdout split, which the optimizer never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge.errors import InputError, TrialError
from evomerge.evaluator.executor import run_all
from evomerge.evaluator.jobs import EvalTask
from evomerge.optimize.ordering import spread
from evomerge.scoring.gates import lower_bound, scales, settle
from evomerge.scoring.item_noise import Scored
from evomerge.study.advice import advise
from evomerge.study.finalists import TOP, Finalists, choose, gate_confidence, screened
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.recorded import recorded_scores
from evomerge.study.run.release import (
    POINTS,
    Advice,
    Release,
    failed_on_holdout,
    looked,
    record_holdout,
    record_release,
    with_holdout_scores,
)
from evomerge.study.run.trial import UNIFORM, Trial
from evomerge.study.session import Session


def release(session: Session, budget: Mapping[str, Any]) -> Release:
    """Scores the parents and the uniform average on the holdout split, which settles the floors there, then one
    finalist after the other until one passes every floor: the winner. Of a front, up to `POINTS` are scored, spread
    over it, and the others are named; the winner is the best of them that passes.

    A function of the trials as they ended in the search: what an interrupted session has scored for it is used, and
    what a release of a smaller budget had scored in full counts only where it is reached again. `budget` is written
    down with it.
    """
    leaderboard, finalists = shortlist(session)
    references = [t for t in leaderboard.trials if t.kind == "reference" and t.state == "complete"]
    points = _points(session, leaderboard)
    if points:
        finalists = _of_front(session, leaderboard, [t for t in references if not t.is_parent] + points)
    asked = points or [finalist.trial for finalist in finalists.chosen]
    total = len(references) + len(asked)
    session.observer.stage("holdout", 0, total)
    trials: list[Trial] = []
    for trial in run_all(session.executor, (_rescored(session, trial) for trial in [*references, *points])):
        trials.append(trial)
        session.observer.stage("holdout", len(trials), total, trial.name)
    order = [t.number for t in (*references, *points)]
    trials = sorted(trials, key=lambda trial: order.index(trial.number))
    floors = _floors(session, trials, leaderboard.floors.traded)
    # The average is a merge, too, and held to the same bounds.
    result = Leaderboard(floors, [t if t.is_parent else _with_bounds(session, t, finalists) for t in trials])
    # An item that a choice among candidates has seen is spent: no more finalists are asked than it takes.
    for finalist in [] if points else [trial for trial in asked if trial.number not in order]:
        [trial] = run_all(session.executor, [_rescored(session, finalist)])
        result.put(_with_bounds(session, trial, finalists))
        session.observer.stage("holdout", len(result.trials), total, trial.name)
        if result.outcome(result.trials[-1]).feasible:
            break
    # They take part in what is told of the search: which came closest, what would help.
    for number in sorted({*looked(session.store).failed} - {trial.number for trial in result.trials}):
        [trial] = run_all(session.executor, [_rescored(session, session.store.promoted(session.store.trial(number)))])
        result.put(trial)
    session.observer.stage("holdout", len(result.trials), len(result.trials))
    winner = result.best()
    chances = {f.trial.number: f.chance for f in finalists.chosen}
    ended = Release(
        leaderboard=result,
        winner=winner,
        after=session.trials.spent()[0],
        budget=budget,
        chances=chances,
        confidence=finalists.confidence,
        advice=None if points or winner is not None else _advice(session, result, leaderboard, finalists),
    )
    record_release(session.store, ended)
    session.describe(ended)
    if ended.winner is not None:
        publish(session, ended.winner)
    return ended


def _advice(session: Session, holdout: Leaderboard, search: Leaderboard, finalists: Finalists) -> Advice | None:
    able = [t for t in search.trials if _can_win(t) and t.state == "complete"]
    n_trials, scored = session.trials.spent()[0], dict[int, Scored]()

    def best_chance(after: int) -> float:
        if after == n_trials:
            return finalists.chance
        return _chosen(session, [t for t in able if t.number < after], search.floors, scored).chance

    noise = session.trials.item_noise
    assert noise is not None  # there since the references were scored
    known = {trial.number: trial for trial in search.trials}
    for trial in (t for t in search.trials if t.label == UNIFORM and t.state == "complete"):
        known[trial.number] = replace(trial, errors=noise.errors(session.trials.scored(trial)))
    return advise(known, holdout, search.floors, finalists.confidence, n_trials, best_chance)


def publish(session: Session, winner: Trial) -> None:
    """Writes the winner to the run's `best.yaml`."""
    session.trials.publish(winner, "the winner: the best on the holdout items that passes every floor there")


def _floors(session: Session, trials: list[Trial], traded: tuple[str, ...]) -> Floors:
    slices = session.executor.info.slices
    needed = {slice_.floor.of for slice_ in slices.values() if slice_.floor is not None}
    if "best_source" in needed:  # the best of the others would be another floor than that of the search
        needed |= {t.label for t in trials if t.is_parent and t.label != "base"}
    failed = next((t for t in trials if t.is_parent and t.state == "failed" and t.label in needed), None)
    if failed is not None:
        problem = f"{failed.label} could not be scored on the holdout items ({failed.reason}), and a floor needs it"
        mend = "resume if the cause was outside the run's files, else launch a new run"
        raise InputError(problem, f"{mend}; the log is {session.folder.log}")
    parents = {t.label: t.slice_scores for t in trials if t.is_parent and t.state == "complete"}
    gates = settle(slices, parents)
    return Floors(gates, scales(parents, gates), traded=traded)


def _points(session: Session, leaderboard: Leaderboard) -> list[Trial]:
    """The points of a front that are scored on the holdout split; none where one number is followed."""
    front = [t for t in leaderboard.front() if t.kind == "search"]
    points = [front[at] for at in spread([leaderboard.outcome(t).values for t in front], POINTS)] if front else []
    left_out = [trial.name for trial in front if trial not in points]
    if left_out:
        count = f"{len(left_out)} of the {len(front)} points of the front"
        session.observer.note(f"{count} are not scored on the holdout items: {', '.join(left_out)}")
    return points


def _of_front(session: Session, leaderboard: Leaderboard, merges: list[Trial]) -> Finalists:
    """In place of finalists, where points of a front are scored: the confidence of one gate's bound."""
    confidence = session.plan.fitness.confidence
    if confidence is None:
        return Finalists()
    n_floors = sum(gate.floor is not None for gate in leaderboard.floors.gates.values())
    return Finalists(confidence=gate_confidence(confidence, len(merges), n_floors))


def shortlist(session: Session, in_full: bool = True) -> tuple[Leaderboard, Finalists]:
    """The trials as they ended, under the floors themselves, and the finalists among them. Finalists whose scores are
    predictions by a race are scored in full (`in_full`), about `TOP` at most, and the choice is made again. Those that
    failed when the search looked ahead (`study.look`) are none."""
    store, ended = session.store, session.trials.as_ended
    leaderboard = Leaderboard(replace(ended.floors, aim=0.0), ended.trials)
    failed = looked(store).failed
    parents = {t.digest for t in leaderboard.trials if t.is_parent}
    scored: dict[int, Scored] = {}
    tried: set[int] = set()
    while True:
        able = [t for t in leaderboard.trials if _can_win(t) and t.digest not in parents and t.number not in failed]
        if in_full and len(tried) >= TOP:
            able = [t for t in able if t.state == "complete"]
        finalists = _chosen(session, able, leaderboard.floors, scored)
        left = [f.trial for f in finalists.chosen if f.trial.state == "pruned" and f.trial.number not in tried]
        if not left or not in_full:
            return leaderboard, finalists
        for trial in left:
            session.observer.stage("best in full", len(tried), len(tried) + 1)
            tried.add(trial.number)
            if store.promoted(trial) is trial:
                session.score_in_full(trial)
            leaderboard.put(store.promoted(trial))
            scored.pop(trial.number, None)
            session.observer.stage("best in full", len(tried), len(tried), trial.name)


def _can_win(trial: Trial) -> bool:
    """Whether a trial may be a finalist: a merge with scores that no floor is known to stop."""
    merge = trial.kind == "search" or trial.label == UNIFORM
    return merge and trial.ranked and trial.pruned_by != "early_stop"


def _chosen(session: Session, able: list[Trial], floors: Floors, scored: dict[int, Scored]) -> Finalists:
    trials, noise, criteria = session.trials, session.trials.item_noise, session.trials.criteria
    assert noise is not None  # there since the references were scored
    base = session.trials.as_ended.base
    if base is None:
        return Finalists()
    chosen = screened(able, floors)
    for trial in (*chosen, base):
        if trial.number not in scored:
            scored[trial.number] = trials.scored(trial)
    return choose(
        chosen,
        [scored[trial.number] for trial in chosen],
        scored[base.number],
        noise,
        floors,
        criteria.objective,
        confidence=criteria.fitness.confidence,
        others=any(t.label == UNIFORM and t.state == "complete" for t in trials.as_ended.trials),
        seed=(session.plan.spec.optimizer["seed"], 16),
    )


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


def _with_bounds(session: Session, trial: Trial, finalists: Finalists) -> Trial:
    """A finalist on the holdout split with the bounds that are held to the floors there."""
    if finalists.confidence is None or not trial.ranked:
        return trial
    scores, slices = recorded_scores(session.folder.items, trial, "holdout"), session.executor.info.slices
    bounds = {name: lower_bound(score, slices[name].sign, finalists.confidence) for name, score in scores.items()}
    return replace(trial, bounds=bounds)
