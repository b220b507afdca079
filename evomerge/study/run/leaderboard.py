"""Where the trials stand: floors settled, verdicts, feasibility-first order. Derived from the scores, never stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.optimize.ordering import front, rank_key
from evomerge.scoring.gates import Gate, Verdict, feasible, judge, shortfall
from evomerge.study.run.trial import Trial
from evomerge.types import Outcome


@dataclass(frozen=True)
class Leaderboard:
    """Trials under a set of gates. `scale` normalises each slice's shortfall (see `scoring.gates`); until the
    references are scored the floors are not `settled`, and nothing is feasible. `traded` are the slices that a front
    trades off against each other, none where one number is followed."""

    trials: Sequence[Trial]
    gates: Mapping[str, Gate]
    scale: Mapping[str, float]
    settled: bool = True
    traded: tuple[str, ...] = ()

    @classmethod
    def from_data(cls, trials: Sequence[Trial], data: Mapping[str, Any]) -> Leaderboard:
        gates = {name: Gate(name, d["floor"], d["text"], d["sign"]) for name, d in data.items()}
        traded = tuple(name for name, d in data.items() if d.get("traded"))
        return cls(trials, gates, {name: d["scale"] for name, d in data.items()}, traded=traded)

    def to_data(self) -> dict[str, Any]:
        """The gates as JSON, for those who read a study without its model."""
        return {
            name: {
                "floor": g.floor,
                "text": g.text,
                "sign": g.sign,
                "scale": self.scale[name],
                "traded": name in self.traded,
            }
            for name, g in self.gates.items()
        }

    def verdicts(self, trial: Trial) -> list[Verdict]:
        """One verdict for each slice that has a floor; empty for a trial without scores."""
        return judge(trial.gated, self.gates, self.scale) if trial.scores else []

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

    def ranked(self) -> list[Trial]:
        """Finished trials, best first; the earlier of two equal ones comes first."""
        finished = [t for t in self.trials if t.state != "running"]
        return sorted(finished, key=lambda t: (rank_key(self.outcome(t)), t.number))

    def merges(self) -> list[Trial]:
        """Merges that were scored in full, best first. A parent cannot win a search for a merge, nor can its weights
        under another recipe (the average of one source, a path's end)."""
        parents = {t.digest for t in self.trials if t.is_parent}
        return [t for t in self.ranked() if t.state == "complete" and t.digest not in parents]

    def best(self) -> Trial | None:
        """The best feasible merge so far; none before the floors are settled."""
        ranked = self.merges()
        return ranked[0] if ranked and self.outcome(ranked[0]).feasible else None

    def front(self) -> list[Trial]:
        """The feasible merges that none of the others dominates in the traded slices, best objective first; empty where
        one number is followed. Of merges with equal scores the earliest stands for all."""
        able = [t for t in self.merges() if self.outcome(t).feasible] if self.traded else []
        return [able[at] for at in front([self.outcome(t).values for t in able])]

    def told(self, trial: Trial) -> str:
        """A trial and its scores in the metrics' own directions, on one line."""
        scores = (f"{name} {gate.sign * trial.scores[name]:.4f}" for name, gate in self.gates.items())
        return f"{trial.name}: {', '.join(scores)}"
