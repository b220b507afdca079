"""The result of a trial: an evaluation with its objective and bounds, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evomerge.evaluator.evaluation import Evaluation
from evomerge.files.objects import FitnessSpec
from evomerge.registry import OBJECTIVES, load
from evomerge.scoring.gates import lower_bound
from evomerge.scoring.slices import SuiteInfo
from evomerge.study.run.trial import PrunedBy
from evomerge.types import Scores, SliceScore


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Attributes:
        seconds: of each phase.
        scores: by slice, measured or (where `pruned_by` is set) predicted.
        digest: of the materialized parameters.
        objective: None where the trial failed.
        bounds: lower confidence bounds of the scores, where the fitness file asks for confidence.
        evaluated, items: the number of items that the candidate was scored on, and of all.
        reason: why it failed, or why it was pruned.
        pruned_by: the means of pruning that ended it.
        errors: see `Trial`.
    """

    seconds: Mapping[str, float]
    scores: Scores = field(default_factory=dict)
    digest: str = ""
    objective: float | None = None
    bounds: Mapping[str, float] = field(default_factory=dict)
    evaluated: int = 0
    items: int = 0
    reason: str | None = None
    pruned_by: PrunedBy | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def failure(cls, reason: str, seconds: Mapping[str, float]) -> TrialResult:
        return cls({"total": 0.0, **seconds}, reason=reason)

    @property
    def failed(self) -> bool:
        return self.objective is None

    @property
    def gated(self) -> dict[str, SliceScore]:
        """The numbers that are held to the floors: the scores, or their lower confidence bounds."""
        return {name: SliceScore(self.bounds.get(name, s.value), None) for name, s in self.scores.items()}

    def to_data(self) -> dict[str, Any]:
        """The scores as the store keeps them beside the objective."""
        return {
            "scores": {name: s.value for name, s in self.scores.items()},
            "stderr": {name: s.stderr for name, s in self.scores.items()},
            "bounds": dict(self.bounds),
            "digest": self.digest,
            "evaluated": self.evaluated,
            "items": self.items,
        }


class Criteria:
    """Turns scores into the objective and into confidence bounds, as the fitness file says."""

    def __init__(self, fitness: FitnessSpec, info: SuiteInfo) -> None:
        self.fitness, self.info = fitness, info
        self._objective = load(OBJECTIVES[fitness.objective])

    def objective(self, scores: Mapping[str, float]) -> float:
        """The number that is maximised, of oriented scores. TrialError where there is none."""
        return float(self._objective(scores, self.info.weights))

    def bounds(self, scores: Scores) -> dict[str, float]:
        """Lower confidence bounds where the fitness file asks for confidence, else nothing."""
        confidence, slices = self.fitness.confidence, self.info.slices
        if confidence is None:
            return {}
        return {name: lower_bound(score, slices[name].sign, confidence) for name, score in scores.items()}

    def result(self, evaluation: Evaluation, evaluated: int, items: int) -> TrialResult:
        """The result of a candidate with these scores, on `evaluated` of all `items`."""
        scores = evaluation.scores
        objective = self.objective({name: score.value for name, score in scores.items()})
        bounds = self.bounds(scores)
        return TrialResult(evaluation.seconds, scores, evaluation.digest, objective, bounds, evaluated, items)
