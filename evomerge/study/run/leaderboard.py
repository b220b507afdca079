"""Trials under a set of floors, feasible ones first. Derived from the recorded scores, never stored."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from evomerge.optimize.ordering import RankKey, rank_key
from evomerge.scoring.gates import Gate, Verdict, feasible, floor_decimals, judge, shortfall
from evomerge.study.run.trial import Trial
from evomerge.types import Outcome, shown


@dataclass(frozen=True)
class Floors:
    """The gate of each slice, and the outcome of a trial's scores under them.

    Attributes:
        gates: by slice.
        scale: normalises each slice's shortfall (see `scoring.gates`).
        settled: whether the references are scored; until then nothing is feasible.
        traded: the slices that a front trades off against each other, none where one number is followed.
        aim: how many standard errors (`Trial.errors`) above each floor a trial has to be. A search aims above the
            floors, as the holdout items may say less of a candidate than the search items do.
        raised: the number of the trial from which on it has to be twice as many; None: none has.
    """

    gates: Mapping[str, Gate] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    settled: bool = True
    traded: tuple[str, ...] = ()
    aim: float = 0.0
    raised: int | None = None

    @classmethod
    def unsettled(cls, signs: Mapping[str, int] | None = None) -> Floors:
        """No floors yet, over slices of these signs."""
        gates = {name: Gate(name, None, "", sign) for name, sign in (signs or {}).items()}
        return cls(gates, dict.fromkeys(gates, 1.0), settled=False)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Floors:
        gates = {name: Gate(name, d["floor"], d["text"], d["sign"]) for name, d in data.items()}
        traded = tuple(name for name, d in data.items() if d.get("traded"))
        return cls(gates, {name: d["scale"] for name, d in data.items()}, traded=traded)

    def to_data(self) -> dict[str, Any]:
        """The gates as JSON, for readers of a study that do not hold its model."""
        return {
            name: {
                "floor": gate.floor,
                "text": gate.text,
                "sign": gate.sign,
                "scale": self.scale[name],
                "traded": name in self.traded,
            }
            for name, gate in self.gates.items()
        }

    def verdicts(self, trial: Trial) -> list[Verdict]:
        """One verdict for each slice; empty for a trial without scores."""
        if not trial.scores:
            return []
        return judge(trial.gated, {name: self._aimed(gate, trial) for name, gate in self.gates.items()}, self.scale)

    def aim_of(self, number: int) -> float:
        """How many standard errors above each floor a trial of this number has to be."""
        return self.aim if self.raised is None or number < self.raised else 2 * self.aim

    def _aimed(self, gate: Gate, trial: Trial) -> Gate:
        above = self.aim_of(trial.number) * trial.errors.get(gate.slice, 0.0)
        return gate if gate.floor is None else replace(gate, floor=gate.floor + above)

    def outcome(self, trial: Trial) -> Outcome:
        if not trial.ranked or trial.objective is None:
            return Outcome(failed=True)
        verdicts = self.verdicts(trial)
        return Outcome(
            feasible=self.settled and feasible(verdicts),
            objective=trial.objective,
            shortfall=shortfall(verdicts),
            margins=tuple((v.bound - v.floor) / self.scale[v.slice] for v in verdicts if v.floor is not None),
            values=tuple(trial.scores[name] for name in self.traded or self.gates),
        )

    def describe(self, trial: Trial) -> str:
        """A trial and its scores in the metrics' own directions, on one line."""
        scores = (f"{name} {shown(gate.sign * trial.scores[name])}" for name, gate in self.gates.items())
        return f"{trial.name}: {', '.join(scores)}"


class Leaderboard:
    """Ranks trials under floors. Adding a trial keeps the order, at a cost that does not grow with their number."""

    def __init__(self, floors: Floors, trials: Iterable[Trial] = ()) -> None:
        self._trials: dict[int, Trial] = {trial.number: trial for trial in trials}
        self._parents = {trial.digest for trial in self.trials if trial.is_parent}
        self.settle(floors)

    @property
    def gates(self) -> Mapping[str, Gate]:
        return self.floors.gates

    @property
    def settled(self) -> bool:
        return self.floors.settled

    @property
    def trials(self) -> list[Trial]:
        """All trials, those in flight included."""
        return list(self._trials.values())

    @property
    def base(self) -> Trial | None:
        """The base's trial, which is the first of a study."""
        first = next(iter(self._trials.values()), None)
        return first if first is not None and first.label == "base" else None

    @property
    def n_finished(self) -> int:
        return len(self._order)

    def settle(self, floors: Floors) -> None:
        """Ranks all trials anew, under these floors."""
        self.floors = floors
        self._keys: dict[int, RankKey] = {}
        self._order: list[tuple[RankKey, int]] = []  # of finished trials, best first; the earlier of equal ones first
        self._front: dict[int, tuple[float, ...]] = {}
        for trial in self.trials:
            self.put(trial)

    def put(self, trial: Trial) -> None:
        """Adds a trial, or replaces the one of its number."""
        number = trial.number
        before = self._keys.pop(number, None)
        if before is not None:
            del self._order[bisect_left(self._order, (before, number))]
        self._trials[number] = trial
        if trial.is_parent:
            self._parents.add(trial.digest)
        if trial.state != "running":
            outcome = self.outcome(trial)
            self._keys[number] = key = rank_key(outcome)
            insort(self._order, (key, number))
            if self.floors.traded and outcome.feasible and self._is_merge(trial):
                self._put_on_front(number, outcome.values)

    def verdicts(self, trial: Trial) -> list[Verdict]:
        return self.floors.verdicts(trial)

    def outcome(self, trial: Trial) -> Outcome:
        return self.floors.outcome(trial)

    def in_order(self, before: int | None = None) -> Iterator[Trial]:
        """Finished trials, best first; with `before`, only those of lower numbers."""
        return (self._trials[n] for _, n in self._order if before is None or n < before)

    def ranked(self) -> list[Trial]:
        """All finished trials, best first."""
        return list(self.in_order())

    def merges_in_order(self, before: int | None = None) -> Iterator[Trial]:
        """Merges that were scored in full, best first. A parent cannot win a search for a merge, nor can its weights
        under another recipe (the average of one source, a path's end)."""
        return filter(self._is_merge, self.in_order(before))

    def merges(self, most: int | None = None) -> list[Trial]:
        """The best `most` of these, or all."""
        return list(islice(self.merges_in_order(), most))

    def latest_merges(self, most: int, before: int) -> list[Trial]:
        """The `most` latest merges of lower numbers than `before` that were scored in full, latest first."""
        latest = (self._trials[n] for n in reversed(self._trials) if n < before)
        return list(islice(filter(self._is_merge, latest), most))

    def latest(self, most: int, before: int) -> list[Trial]:
        """The `most` latest trials of lower numbers than `before` that have ended, latest first."""
        ended = (t for t in reversed(self._trials.values()) if t.number < before and t.state != "running")
        return list(islice(ended, most))

    def best(self) -> Trial | None:
        """The best feasible merge so far; None before the floors are settled."""
        first = next(self.merges_in_order(), None)
        return first if first is not None and self.outcome(first).feasible else None

    def passes(self, trial: Trial) -> bool:
        """Whether a trial is a merge that was scored in full and passes every floor."""
        return self._is_merge(trial) and self.outcome(trial).feasible

    def decimals(self, trials: Iterable[Trial]) -> dict[str, int]:
        """By slice, the decimals with which each score of these trials is on the right side of its floor."""
        verdicts = [verdict for trial in trials for verdict in self.verdicts(trial)]
        told = {name: [v for v in verdicts if v.slice == name] for name in self.gates}
        return {name: floor_decimals(gate.floor, gate.sign, told[name]) for name, gate in self.gates.items()}

    def improvements(self) -> list[Trial]:
        """The trials that were the best feasible merge when they ended."""
        found, best = list[Trial](), -math.inf
        for trial in self._trials.values():
            if trial.objective is not None and trial.objective > best and self.passes(trial):
                best = trial.objective
                found.append(trial)
        return found

    def front(self) -> list[Trial]:
        """The feasible merges that no other one dominates in the traded slices, best objective first; empty where one
        number is followed. Of merges with equal scores the earliest is on it."""
        return [self._trials[n] for n in sorted(self._front, key=lambda n: (self._keys[n], n))]

    def _is_merge(self, trial: Trial) -> bool:
        return trial.state == "complete" and trial.digest not in self._parents

    def _put_on_front(self, number: int, values: tuple[float, ...]) -> None:
        """Adds a trial to the front unless another one dominates it (at least as good in each value, and better in one:
        Deb et al. 2002, section III); trials that it dominates leave."""
        if any(value != value for value in values):
            return
        for other, scores in list(self._front.items()):
            if scores == values and other < number:
                return
            if scores != values and _as_good(scores, values):
                return
        self._front = {n: scores for n, scores in self._front.items() if not _as_good(values, scores)}
        self._front[number] = values


def better_parent(holdout: Leaderboard, winner: Trial | None) -> Trial | None:
    """Returns the base or source that passes every floor and scores better than the winner."""
    best = passing_parent(holdout)
    if best is None or winner is None or best.objective is None or winner.objective is None:
        return None
    return best if best.objective > winner.objective else None


def passing_parent(holdout: Leaderboard) -> Trial | None:
    """Returns the base or source that scores best of those that pass every floor."""
    parents = [t for t in holdout.trials if t.is_parent and holdout.outcome(t).feasible]
    return max(parents, key=lambda t: -math.inf if t.objective is None else t.objective, default=None)


def _as_good(values: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return all(a >= b for a, b in zip(values, others, strict=True))
