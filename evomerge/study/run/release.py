"""What a search recorded at its end: scores on the holdout split, the winner, and what gradient steps gained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from evomerge.study.run.evaluation import TrialResult
from evomerge.study.run.folder import RunFolder
from evomerge.study.run.leaderboard import Floors, Leaderboard
from evomerge.study.run.store import Store
from evomerge.study.run.trial import UNIFORM, Trial

POINTS = 10
"""How many points of a front are scored on the holdout split."""

_RELEASE, _LOOK, _CONTRIBUTIONS = "release", "look", "gradient"


@dataclass(frozen=True)
class Advice:
    """What would help.

    Attributes:
        trial: the number of the finalist that came closest on the holdout items.
        floors: slice -> the highest floor that this trial passes there, of the floors that it missed; oriented.
        items: how many times as many items, in each split, give it a good chance, by its scores on both splits; 1
            where others of the same number do; None where no number does, as its score lies below a floor.
        trials: the number of trials after which a finalist has that chance, as it rose so far; None where it did not.
        chances: of the best finalist, by the search items, after half of the trials and after all of them.
    """

    trial: int
    floors: Mapping[str, float] = field(default_factory=dict)
    items: float | None = None
    trials: int | None = None
    chances: tuple[float, float] | None = None

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Advice:
        return cls(**{**data, "chances": None if data["chances"] is None else tuple(data["chances"])})

    def to_data(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Release:
    """The last release.

    Attributes:
        leaderboard: of the holdout split.
        winner: the trial that passes every floor there, or None.
        after: after how many trials it was.
        budget: of the search; None in older runs.
        chances: number of each finalist -> its chance to pass every floor, by the search items; also of those that were
            not asked because an earlier one had passed. Empty for fronts and in older runs.
        confidence: of one gate's bound (`finalists.gate_confidence`).
        advice: what would help where there is no winner.
    """

    leaderboard: Leaderboard
    winner: Trial | None
    after: int
    budget: Mapping[str, Any] | None = None
    chances: Mapping[int, float] = field(default_factory=dict)
    confidence: float | None = None
    advice: Advice | None = None

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers of its trials."""
        return frozenset(trial.number for trial in self.leaderboard.trials)

    @property
    def n_asked(self) -> int:
        """Over how many candidates the error of a confidence is shared out: the finalists and the uniform average, or
        the merges beside a front."""
        average = any(trial.label == UNIFORM for trial in self.leaderboard.trials)
        merges = sum(not trial.is_parent for trial in self.leaderboard.trials)
        return len(self.chances) + average if self.chances else merges


class Ended(Protocol):
    """A search that has ended: the `Result` of one, or the `Status` of a finished run."""

    @property
    def folder(self) -> RunFolder: ...
    @property
    def search(self) -> Leaderboard: ...
    @property
    def holdout(self) -> Leaderboard: ...
    @property
    def winner(self) -> Trial | None: ...
    @property
    def release(self) -> Release | None: ...
    @property
    def gained(self) -> Contributions | None: ...
    @property
    def facts(self) -> Mapping[str, Mapping[str, Any]]:
        """Of each slice (`SliceInfo.facts`)."""
        ...

    @property
    def confidence(self) -> float | None: ...


def record_release(store: Store, release: Release) -> None:
    """Writes a release down, whose trials have holdout scores (`record_holdout`), or failed there."""
    trials = release.leaderboard.trials
    data = {
        "gates": release.leaderboard.floors.to_data(),
        "trials": [trial.number for trial in trials],
        "winner": release.winner.number if release.winner else None,
        "after": release.after,
        "budget": dict(release.budget or {}),
        "failed": {str(t.number): t.reason for t in trials if t.state == "failed"},
        "chances": {str(number): chance for number, chance in release.chances.items()},
        "confidence": release.confidence,
        "advice": release.advice.to_data() if release.advice else None,
        "bounds": {str(t.number): dict(t.bounds) for t in trials if t.bounds},
    }
    store.record(_RELEASE, data)


def released(store: Store) -> Release | None:
    """The last release; None before a search has ended."""
    if _RELEASE not in store.facts:
        return None
    release = store.facts[_RELEASE]
    known = {trial.number: trial for trial in rescored(store)}
    for number, reason in release.get("failed", {}).items():
        known[int(number)] = failed_on_holdout(store.promoted(store.trial(int(number))), reason)
    for number, bounds in release.get("bounds", {}).items():
        if int(number) in known:
            known[int(number)] = replace(known[int(number)], bounds=bounds)
    trials = [known[number] for number in release["trials"] if number in known]
    leaderboard = Leaderboard(Floors.from_data(release["gates"]), trials)
    chances = {int(number): chance for number, chance in release.get("chances", {}).items()}
    winner, budget, confidence = known.get(release["winner"]), release.get("budget"), release.get("confidence")
    advice = Advice.from_data(release["advice"]) if release.get("advice") else None
    return Release(leaderboard, winner, release["after"], budget, chances, confidence, advice)


@dataclass(frozen=True)
class Look:
    """The last look ahead (`study.look`).

    Attributes:
        budget: of the search that looked; None: none did.
        raised: the number of the trial from which on the search aims higher; None: no finalists failed.
        failed: the numbers of the finalists that failed, in this look and in earlier ones.
    """

    budget: Mapping[str, Any] | None = None
    raised: int | None = None
    failed: tuple[int, ...] = ()


def record_look(store: Store, look: Look) -> None:
    store.record(_LOOK, {**asdict(look), "failed": list(look.failed)})


def looked(store: Store) -> Look:
    """The last look; an empty one where there was none."""
    data = store.facts.get(_LOOK)
    return Look() if data is None else Look(data["budget"], data["raised"], tuple(data["failed"]))


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
