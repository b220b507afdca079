"""Makes one number, which is maximised, of the slices' scores.

Scores are oriented: higher is always better. A slice of weight 0 is no part of any objective; only its floor counts.
`mean` and `minimum` use weights for nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from evomerge.errors import TrialError


def mean(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The plain average."""
    values = [value for value, _ in _counted(scores, weights)]
    return math.fsum(values) / len(values)


def weighted_mean(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """``sum(w s) / sum(w)``."""
    pairs = _counted(scores, weights)
    return math.fsum(w * s for s, w in pairs) / math.fsum(w for _, w in pairs)


def geometric_mean(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """``exp(sum(w log s) / sum(w))``: a gain counts in proportion to the score. 0 where a score is 0. TrialError where
    one is negative."""
    pairs = _counted(scores, weights)
    if any(s < 0 for s, _ in pairs):
        worst = min((name for name in scores if weights.get(name, 1.0) > 0), key=lambda name: scores[name])
        raise TrialError(f"the geometric mean needs scores of at least 0, but {worst} is {scores[worst]:g}")
    if any(s == 0 for s, _ in pairs):
        return 0.0
    return math.exp(math.fsum(w * math.log(s) for s, w in pairs) / math.fsum(w for _, w in pairs))


def minimum(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The worst slice."""
    return min(value for value, _ in _counted(scores, weights))


def _counted(scores: Mapping[str, float], weights: Mapping[str, float]) -> list[tuple[float, float]]:
    """(score, weight) of the slices that count; a slice without a weight has weight 1."""
    pairs = [(score, weights.get(name, 1.0)) for name, score in scores.items()]
    counted = [(score, weight) for score, weight in pairs if weight > 0]
    if not counted:
        raise ValueError("no slice has a weight above 0")
    return counted
