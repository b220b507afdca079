"""What evaluating one candidate gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.types import Scores, SliceScore


@dataclass(frozen=True)
class Evaluation:
    """Scores of one candidate, the digest of its parameters, and the seconds that each phase took."""

    scores: Scores
    digest: str
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class TrialResult:
    """An evaluation with what follows from its scores: the objective, and lower confidence bounds where the fitness
    file asks for confidence; and how many of how many items the candidate was scored on."""

    evaluation: Evaluation
    objective: float
    bounds: Mapping[str, float]
    evaluated: int = 0
    items: int = 0

    @property
    def gated(self) -> dict[str, SliceScore]:
        """What is held to the floors."""
        scores = self.evaluation.scores
        return {name: SliceScore(self.bounds.get(name, s.value), None) for name, s in scores.items()}

    def to_data(self) -> dict[str, object]:
        """As the store keeps it beside the objective."""
        scores = self.evaluation.scores
        return {
            "scores": {name: s.value for name, s in scores.items()},
            "stderr": {name: s.stderr for name, s in scores.items()},
            "bounds": dict(self.bounds),
            "digest": self.evaluation.digest,
            "evaluated": self.evaluated,
            "items": self.items,
        }


def added(seconds: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """The seconds of each phase, summed."""
    return {phase: seconds.get(phase, 0.0) + more.get(phase, 0.0) for phase in {**seconds, **more}}
