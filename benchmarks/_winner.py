"""What a row of benchmarks/search.py found: its winner on the holdout split."""

from __future__ import annotations

from collections.abc import Sequence

from _checkpoints import Floored

from evomerge.optimize.ordering import rank_key
from evomerge.types import Genome, Outcome

TOP = 5

Scored = tuple[Genome, Outcome]


def winner(trials: Sequence[Scored], models: Floored) -> Scored | None:
    """Of the five best merges by the search split, floors first, the best feasible one on the holdout split, with its
    outcome there. None where all miss a floor."""
    top = sorted(trials, key=lambda trial: rank_key(trial[1]))
    merges = [genome for genome, _ in top if genome not in models.parents][:TOP]
    held = [(genome, models.outcome(genome, "holdout")) for genome in merges]
    return min((pair for pair in held if pair[1].feasible), key=lambda pair: rank_key(pair[1]), default=None)
