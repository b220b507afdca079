"""The order in which a candidate is scored on the items: few that represent all first, then more, then the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.files.objects import FitnessSpec
from evomerge.scoring.slices import SuiteInfo
from evomerge.scoring.stats.aggregation import ItemWeights, MeanKind
from evomerge.scoring.stats.anchors import Matrix, Vector, anchors
from evomerge.scoring.stats.forecast import Forecaster
from evomerge.study.run.items import Items

ItemNames = dict[str, frozenset[str]]
"""Slice -> names of items."""

_FIRST, _SECOND = 0.1, 0.3
"""The shares of the items on the first two rungs of a race. The last rung has all."""

_LEAST = 8
"""The fewest items of a slice on a rung."""

_CHUNKS = 4
"""The number of parts of the last rung, between which a candidate may be stopped."""


@dataclass(frozen=True)
class Pool:
    """Slices that share their items.

    Attributes:
        slices: their names.
        order: names of the items, the most representative first.
        late: the same items, those first on which the references lose most.
        whole: whether all are scored on the first rung, as some slice's score is no mean of its items.
    """

    slices: tuple[str, ...]
    order: tuple[str, ...]
    late: tuple[str, ...]
    whole: bool

    def first(self, share: float) -> frozenset[str]:
        """The items of a rung that has `share` of them."""
        count = len(self.order) if self.whole else max(_LEAST, math.ceil(share * len(self.order)))
        return frozenset(self.order[:count])

    def chunks(self, scored: frozenset[str], size: int) -> list[frozenset[str]]:
        """The items that are not scored yet, in parts of at least `size`."""
        left = [name for name in self.late if name not in scored]
        if self.whole:
            return [frozenset(left)] if left else []
        step = max(1, size, math.ceil(len(left) / _CHUNKS))
        return [frozenset(left[at : at + step]) for at in range(0, len(left), step)]


class ItemSchedule:
    """The rungs of a study, built from its references' scores on each item."""

    def __init__(self, fitness: FitnessSpec, suite: SuiteInfo, references: Sequence[Items]) -> None:
        """Args:
        fitness: with the means of pruning that the search uses.
        suite: its slices.
        references: their items on the search split, the base's first.
        """
        self.fitness = fitness
        self.item_weights: dict[str, ItemWeights] = {}
        self.forecasters: dict[str, Forecaster] = {}
        self.pools = [self._pool(suite, slices, references) for slices in suite.pools]
        self.rungs = [_FIRST, _SECOND] if "racing" in fitness.pruning else []

    def __str__(self) -> str:
        counts = [sum(len(pool.first(share)) for pool in self.pools) for share in self.rungs]
        first = (
            f"a candidate is scored on {counts[0]}, then {counts[1]}, then all "
            if counts
            else "a candidate is scored on all "
        )
        early = ", unless a floor is out of reach" if "early_stop" in self.fitness.pruning else ""
        return f"{first}{self.total} of the search split{early}"

    @property
    def total(self) -> int:
        """The number of items that a candidate is scored on in full."""
        return sum(len(pool.order) for pool in self.pools)

    def count(self, items: Items) -> int:
        """The number of items that a candidate was scored on."""
        return sum(len(items.get(pool.slices[0], ())) for pool in self.pools)

    def rung(self, share: float) -> ItemNames:
        return {name: pool.first(share) for pool in self.pools for name in pool.slices}

    def within_rungs(self, items: Items) -> Items:
        """The items of the largest rung that a candidate finished."""
        kept: Items = {}
        for share in self.rungs:
            rung = self.rung(share)
            if all(rung[name] <= items.get(name, {}).keys() for name in rung):
                kept = {name: {item: items[name][item] for item in rung[name]} for name in rung}
        return kept

    def _pool(self, suite: SuiteInfo, slices: tuple[str, ...], references: Sequence[Items]) -> Pool:
        names = suite.slices[slices[0]].items
        possible = [self._units(suite, name, references) for name in slices]
        units = [u for u in possible if u is not None]
        if len(units) < len(slices):
            for name in slices:
                self.item_weights.pop(name, None)
            return Pool(slices, names, names, whole=True)
        # Items are alike where the references differ alike on them; the anchors are medoids of such items.
        features = np.concatenate([_features(u) for u in units], axis=1)
        representative = "representative" in self.fitness.pruning
        for name in slices:
            self.forecasters[name] = Forecaster(self.item_weights[name], features if representative else None)
        shares: Vector = np.mean([self.item_weights[name].shares for name in slices], axis=0)
        if representative:
            order = anchors(features, shares, max(2 * _LEAST, math.ceil(_SECOND * len(names))))
        else:
            order = []
        drawn = np.random.default_rng([self.fitness.split_seed, len(names)]).permutation(len(names))
        chosen = set(order)
        order += [int(at) for at in drawn if int(at) not in chosen]
        lost = sum(self._lost(name, u) for name, u in zip(slices, units, strict=True))
        late = np.argsort(-np.asarray(lost), kind="stable")
        return Pool(slices, tuple(names[at] for at in order), tuple(names[at] for at in late), whole=False)

    def _units(self, suite: SuiteInfo, name: str, references: Sequence[Items]) -> Matrix | None:
        """[references, items], the numbers that are averaged; None where the slice's score is no mean of its items."""
        aggregation, names = suite.slices[name].aggregation, suite.slices[name].items
        if aggregation is None:
            return None
        kind = aggregation.kind
        of_base = references[0].get(name, {})
        base = [of_base[item] for item in names if item in of_base]
        lacking = len(base) < len(names)
        if lacking or any(item.score is None and item.weight > 0 for item in base):
            return None
        scores = [i.score for reference in references for i in reference[name].values() if i.score is not None]
        if not _between(scores, kind):
            kind = replace(kind, best=None, worst=None)  # another metric of a known name
        self.item_weights[name] = weights = ItemWeights.of(kind, base)
        units = np.array([weights.units(reference[name]) for reference in references])
        return units if np.isfinite(units).all() else None

    def _lost(self, name: str, units: Matrix) -> Vector:
        """[items], how much of the score each costs the references on average."""
        weights = self.item_weights[name]
        mean: Vector = units.mean(axis=0)
        return -weights.kind.sign * mean * weights.shares


def _between(scores: Sequence[float], kind: MeanKind) -> bool:
    """Whether scores lie between the ends that a metric has by its name."""
    highest = math.inf if kind.best is None else kind.sign * kind.best
    lowest = -math.inf if kind.worst is None else kind.sign * kind.worst
    return all(lowest <= kind.sign * score <= highest for score in scores)


def _features(units: Matrix) -> Matrix:
    """[items, references - 1], how each reference differs from the base, in units of the spread of all differences."""
    differences: Matrix = (units[1:] - units[0]).T
    spread = float(differences.std())
    return differences / spread if spread > 0 else differences
