"""What gradient steps gained, by groups of genes.

The objective's slopes along the way, times how far each gene went, add up to the gain of the way (integrated gradients:
Sundararajan et al. 2017, arXiv:1703.01365, section 3, along the path that was taken). Slopes are those of the proxy
losses, so the sum is near the gain in the metrics, and equal to it where they are one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evomerge.optimize.gradient_start import layer_name
from evomerge.study.run.leaderboard import Leaderboard
from evomerge.study.run.release import Contributions
from evomerge.study.run.trial import Trial
from evomerge.types import Dimension, Outcome


def contributions(
    leaderboard: Leaderboard, outcome: Callable[[Trial], Outcome], dimensions: Sequence[Dimension]
) -> Contributions | None:
    """The parts of all steps up to the best of them by the search items; None where no step was taken.

    Args:
        leaderboard: of the run.
        outcome: of a trial, with its slopes.
        dimensions: of the space.
    """
    steps = {trial.number for trial in leaderboard.trials if trial.slopes and trial.ranked}
    if not steps:
        return None
    best = next(trial for trial in leaderboard.in_order() if trial.number in steps)
    way = [trial for trial in leaderboard.trials if trial.number in steps and trial.number <= best.number]
    parts: dict[tuple[str, str, str], float] = {}
    for dimension, gain in zip(dimensions, _gains(way, outcome, dimensions), strict=True):
        group = (dimension.gene, dimension.place.get("sources", ""), layer_name(dimension))
        parts[group] = parts.get(group, 0.0) + gain
    return Contributions(way[0].number, best.number, (way[0].objective or 0.0, best.objective or 0.0), parts)


def _gains(way: Sequence[Trial], outcome: Callable[[Trial], Outcome], dimensions: Sequence[Dimension]) -> list[float]:
    """[D], the sum over steps of (change of the gene) * (mean of the slopes at both ends): the trapezoidal rule."""
    outcomes = [outcome(trial) for trial in way]
    slopes = np.array([o.slopes.objective for o in outcomes if o.slopes is not None])
    values = np.array([[0.0 if d.choices else float(t.genome[d.key]) for d in dimensions] for t in way])
    gains: list[float] = (np.diff(values, axis=0) * (slopes[1:] + slopes[:-1]) / 2).sum(axis=0).tolist()
    return gains
