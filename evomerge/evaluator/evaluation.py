"""The result of evaluating one candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.types import Scores


@dataclass(frozen=True)
class Evaluation:
    """Scores of one candidate, the digest of its parameters, and the seconds of each phase."""

    scores: Scores
    digest: str
    seconds: Mapping[str, float]


def add_seconds(seconds: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """The seconds of each phase, summed."""
    return {phase: seconds.get(phase, 0.0) + more.get(phase, 0.0) for phase in {**seconds, **more}}
