"""What a search recorded at its end: scores on the holdout split, the winner, and what gradient steps gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from evomerge.study.run.evaluation import TrialResult
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.store import Store
from evomerge.study.run.trial import Trial

TOP = 5
"""How many of the best candidates by search scores are scored on the holdout split."""
POINTS = 10
"""How many points of a front are."""

_RELEASE, _CONTRIBUTIONS = "release", "gradient"


@dataclass(frozen=True)
class Release:
    """The last release: the leaderboard of the holdout split, the winner, after how many trials it was, and of what
    budget (None in older runs)."""

    leaderboard: Leaderboard
    winner: Trial | None
    after: int
    budget: Mapping[str, Any] | None = None


def record_release(
    store: Store, leaderboard: Leaderboard, winner: Trial | None, after: int, budget: Mapping[str, Any]
) -> None:
    """Writes a release down, whose trials have holdout scores (`record_holdout`), or failed there."""
    release = {
        "gates": leaderboard.floors.to_data(),
        "trials": [trial.number for trial in leaderboard.trials],
        "winner": winner.number if winner else None,
        "after": after,
        "budget": dict(budget),
        "failed": {str(t.number): t.reason for t in leaderboard.trials if t.state == "failed"},
    }
    store.record(_RELEASE, release)


def released(store: Store) -> Release | None:
    """The last release; None before a search has ended."""
    if _RELEASE not in store.facts:
        return None
    release = store.facts[_RELEASE]
    known = {trial.number: trial for trial in rescored(store)}
    for number, reason in release.get("failed", {}).items():
        known[int(number)] = failed_on_holdout(store.promoted(store.trial(int(number))), reason)
    trials = [known[number] for number in release["trials"] if number in known]
    leaderboard = Leaderboard(Floors.from_data(release["gates"]), trials)
    return Release(leaderboard, known.get(release["winner"]), release["after"], release.get("budget"))


def record_holdout(store: Store, trial: Trial, result: TrialResult) -> None:
    """Writes a trial's holdout scores down."""
    store.record(_holdout_key(trial.number), {**result.to_data(), "objective": result.objective})


def with_holdout_scores(store: Store, trial: Trial) -> Trial | None:
    """The trial with its holdout scores in place of its search scores; None where it has none."""
    scores = store.facts.get(_holdout_key(trial.number))
    return None if scores is None else replace(trial, **scores)


def failed_on_holdout(trial: Trial, reason: str) -> Trial:
    """The trial as one that could not be scored on the holdout split."""
    return replace(trial, state="failed", reason=reason, scores={}, bounds={}, objective=None)


def rescored(store: Store) -> list[Trial]:
    """Every trial that was ever scored on the holdout split, with these scores in place of its search scores."""
    return [scored for trial in store.trials() if (scored := with_holdout_scores(store, trial)) is not None]


def _holdout_key(number: int) -> str:
    return f"holdout.{number}"


@dataclass(frozen=True)
class Contributions:
    """What gradient steps gained from trial `first` to trial `last`, the best step.

    Attributes:
        first, last: numbers of trials.
        objective: of both.
        parts: (gene, source, place) -> part of the gain; source and place are empty for genes that have one value for
            all.
    """

    first: int
    last: int
    objective: tuple[float, float]
    parts: dict[tuple[str, str, str], float]


def record_contributions(store: Store, contributions: Contributions) -> None:
    rows = [[*group, part] for group, part in contributions.parts.items()]
    first, last, objective = contributions.first, contributions.last, list(contributions.objective)
    store.record(_CONTRIBUTIONS, {"first": first, "last": last, "objective": objective, "parts": rows})


def recorded_contributions(store: Store) -> Contributions | None:
    """None where no gradient step was taken."""
    data: Mapping[str, Any] | None = store.facts.get(_CONTRIBUTIONS)
    if data is None:
        return None
    parts = {(gene, source, place): part for gene, source, place, part in data["parts"]}
    return Contributions(data["first"], data["last"], (data["objective"][0], data["objective"][1]), parts)
