"""A trial's scores with the items that they are made of, read back from its run's folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from evomerge.errors import InputError, Where
from evomerge.scoring.gates import interval
from evomerge.scoring.stats.aggregation import ItemWeights, MeanKind
from evomerge.study.run.items import RESTORE, items_file, recorded_items
from evomerge.study.run.trial import Trial
from evomerge.types import SliceScore, SplitName

logger = logging.getLogger(__name__)

Interval = tuple[float, float] | None

_CLOSE = 1e-6
"""How far a score may be from the mean of its items, relative to it: sums in another order, weights as floats."""


def recorded_scores(items: Path, trial: Trial, split: SplitName) -> dict[str, SliceScore]:
    """A trial's scores, which must be those of `split`, with the items of the folder `items`; a slice whose items were
    not kept has none. InputError where their file is damaged or missing."""
    kept = recorded_items(items, trial.number, split)
    count = sum(map(len, kept.values()))
    if count < trial.evaluated and (trial.state == "complete" or not count):
        problem = f"holds {count} items of {trial.name}, which has scores of {trial.evaluated}"
        raise InputError(problem, RESTORE, Where(items_file(items, trial.number, split)))
    return {n: SliceScore(v, trial.stderr.get(n), kept.get(n, ())) for n, v in trial.scores.items()}


def intervals(
    items: Path, trial: Trial, split: SplitName, signs: Mapping[str, int], confidence: float = 0.95
) -> dict[str, Interval]:
    """The two-sided interval of each of a trial's scores, in the metric's own direction (`scoring.gates.interval`);
    empty where its items are damaged or missing."""
    try:
        scores = recorded_scores(items, trial, split)
    except InputError as error:
        logger.warning("no intervals: %s", error)
        return {}
    return {name: interval(score, signs[name], confidence) for name, score in scores.items() if name in signs}


def mean_kind_of(scores: Sequence[SliceScore], sign: int) -> MeanKind | None:
    """The kind of mean that makes these candidates' scores of one slice out of their items, found by trying each; None
    where none does, as for F1. Every candidate must have been scored in full."""
    kinds = [MeanKind(sign, logarithmic, by_size) for logarithmic in (False, True) for by_size in (True, False)]
    return next((kind for kind in kinds if all(_made_by(kind, score) for score in scores)), None)


def _made_by(kind: MeanKind, score: SliceScore) -> bool:
    items = {item.item: item for item in score.items}
    if not any(item.weight > 0 for item in score.items) or any(i.score is None and i.weight > 0 for i in score.items):
        return False
    if kind.logarithmic and any(i.score is not None and i.score <= 0 for i in score.items):
        return False
    weights = ItemWeights.of(kind, score.items)
    return abs(weights.value(weights.units(items)) - score.value) <= _CLOSE * max(1.0, abs(score.value))
