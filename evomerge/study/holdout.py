"""After the search: the parents and the top candidates on the holdout split, which the optimizer never saw."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from evomerge.errors import TrialError
from evomerge.scoring.gates import scales, settle
from evomerge.study.standing import Standing
from evomerge.study.store import Store
from evomerge.study.trial import Trial

if TYPE_CHECKING:
    from evomerge.study.session import Session

TOP = 5
"""How many of the best candidates by search score are re-scored."""


def release(session: Session) -> Standing:
    """Where the parents, the uniform average and the top candidates stand on the holdout split, under floors that
    the parents' holdout scores settle. `Standing.best()` of it is the winner, if there is one."""
    standing = session.standing()
    references = [t for t in standing.trials if t.kind == "reference" and t.state == "complete"]
    top = [t for t in standing.merges() if t.kind == "search"][:TOP]
    wanted = [*references, *top]
    scored = []
    for done, trial in enumerate(wanted, 1):
        scored.append(_rescored(session, trial))
        session.observer.holdout_scored(trial.name, done, len(wanted))
    parents = {t.label: t.slice_scores for t in scored if t.is_parent and t.state == "complete"}
    gates = settle(session.bench.suite.slices, parents)
    result = Standing(scored, gates, scales(parents, gates))
    session.store.record("holdout.gates", result.to_data())
    session.store.record("holdout.trials", [t.number for t in scored])
    winner = result.best()
    session.store.record("winner", winner.number if winner else None)
    return result


def _rescored(session: Session, trial: Trial) -> Trial:
    """The trial with its holdout scores in place of its search scores; scores of an earlier session are reused."""
    key = holdout_key(trial.number)
    known = session.store.facts.get(key)
    if known is None:
        try:
            evaluation = session.measure(trial, "holdout")
        except TrialError as error:
            return replace(trial, state="failed", reason=str(error), scores={}, bounds={}, objective=None)
        scores = evaluation.scores
        known = {
            "scores": {name: s.value for name, s in scores.items()},
            "stderr": {name: s.stderr for name, s in scores.items()},
            "bounds": session.bounds(scores),
            "objective": session.objective(scores),
            "digest": evaluation.digest,
        }
        session.store.record(key, known)
    return replace(trial, **known)


def released(store: Store) -> Standing | None:
    """The holdout standing that an earlier `release` recorded, for those who only read."""
    facts = store.facts
    if "holdout.gates" not in facts:
        return None
    trials = {t.number: t for t in store.trials()}
    known = [n for n in facts["holdout.trials"] if holdout_key(n) in facts]
    scored = [replace(trials[n], **facts[holdout_key(n)]) for n in known]
    return Standing.from_data(scored, facts["holdout.gates"])


def holdout_key(number: int) -> str:
    return f"holdout.{number}"
