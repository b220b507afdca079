"""In what order a candidate meets the items: few that stand for all first, then more, then the rest of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.files.objects import FitnessSpec
from evomerge.scoring.slices import SuiteInfo
from evomerge.scoring.stats.aggregation import ItemWeights, MeanKind
from evomerge.scoring.stats.anchors import Matrix, Vector, anchors
from evomerge.scoring.stats.forecast import Forecaster
from evomerge.types import ItemScore

Items = Mapping[str, Mapping[str, ItemScore]]
"""Slice -> item -> score."""

Chosen = dict[str, frozenset[str]]
"""Slice -> items."""

_FIRST, _SECOND = 0.1, 0.3
"""The shares of the items that a race looks at before it looks at all."""

_LEAST = 8
"""The fewest items of a slice that anything is concluded from."""

_CHUNKS = 4
"""Into how many parts the rest is cut, to stop between them."""


@dataclass(frozen=True)
class Pool:
    """Slices that share their items. `order` are the items, those that stand for most first; `late` are the same, those
    first on which most is lost. A pool with a slice whose score is no mean of its items is asked as a whole."""

    slices: tuple[str, ...]
    order: tuple[str, ...]
    late: tuple[str, ...]
    whole: bool

    def first(self, share: float) -> frozenset[str]:
        """The items of a rung on which `share` of them are met."""
        count = len(self.order) if self.whole else max(_LEAST, math.ceil(share * len(self.order)))
        return frozenset(self.order[:count])

    def chunks(self, seen: frozenset[str], size: int) -> list[frozenset[str]]:
        """What is left, in parts of at least `size` items."""
        left = [name for name in self.late if name not in seen]
        if self.whole:
            return [frozenset(left)] if left else []
        step = max(1, size, math.ceil(len(left) / _CHUNKS))
        return [frozenset(left[at : at + step]) for at in range(0, len(left), step)]


class ItemSchedule:
    """The rungs of a study, by how its references did on each item."""

    def __init__(self, fitness: FitnessSpec, suite: SuiteInfo, references: Sequence[Items]) -> None:
        """`references`: their items on the search split, the base's first."""
        self.fitness = fitness
        self.compositions: dict[str, ItemWeights] = {}
        self.forecasters: dict[str, Forecaster] = {}
        self.pools = [self._pool(suite, slices, references) for slices in suite.pools]
        self.rungs = [_FIRST, _SECOND] if "racing" in fitness.economy else []

    def __str__(self) -> str:
        met = [sum(len(pool.first(share)) for pool in self.pools) for share in self.rungs]
        first = f"a candidate meets {met[0]}, then {met[1]}, then all " if met else "a candidate meets all "
        early = ", unless a floor is out of reach" if "early_stop" in self.fitness.economy else ""
        return f"{first}{self.total} of the search split{early}"

    @property
    def total(self) -> int:
        """How many items a candidate meets that is scored in full."""
        return sum(len(pool.order) for pool in self.pools)

    def seen(self, items: Items) -> int:
        """How many a candidate met."""
        return sum(len(items.get(pool.slices[0], ())) for pool in self.pools)

    def rung(self, share: float) -> Chosen:
        return {name: pool.first(share) for pool in self.pools for name in pool.slices}

    def within_rungs(self, items: Items) -> Items:
        """The items of the largest rung that a candidate met whole."""
        met: Items = {}
        for share in self.rungs:
            rung = self.rung(share)
            if all(rung[name] <= items.get(name, {}).keys() for name in rung):
                met = {name: {item: items[name][item] for item in rung[name]} for name in rung}
        return met

    def _pool(self, suite: SuiteInfo, slices: tuple[str, ...], references: Sequence[Items]) -> Pool:
        names = suite.slices[slices[0]].items
        known = [self._compose(suite, name, references) for name in slices]
        units = [u for u in known if u is not None]
        if len(units) < len(slices):
            for name in slices:
                self.compositions.pop(name, None)
            return Pool(slices, names, names, whole=True)
        features = np.concatenate([_features(u) for u in units], axis=1)
        representative = "representative" in self.fitness.economy
        for name in slices:
            self.forecasters[name] = Forecaster(self.compositions[name], features if representative else None)
        shares: Vector = np.mean([self.compositions[name].shares for name in slices], axis=0)
        if representative:
            order = anchors(features, shares, max(2 * _LEAST, math.ceil(_SECOND * len(names))))
        else:
            order = []
        drawn = np.random.default_rng([self.fitness.split_seed, len(names)]).permutation(len(names))
        order += [int(at) for at in drawn if int(at) not in set(order)]
        lost = sum(self._lost(name, u) for name, u in zip(slices, units, strict=True))
        late = np.argsort(-np.asarray(lost), kind="stable")
        return Pool(slices, tuple(names[at] for at in order), tuple(names[at] for at in late), whole=False)

    def _compose(self, suite: SuiteInfo, name: str, references: Sequence[Items]) -> Matrix | None:
        """[references, items] units; None where the slice's score is no mean of its items."""
        aggregation = suite.slices[name].aggregation
        if aggregation is None:
            return None
        mixture = aggregation.kind
        found = references[0].get(name, {})
        base = [found[item] for item in suite.slices[name].items if item in found]
        lacking = len(base) < len(suite.slices[name].items)
        if lacking or any(item.score is None and item.weight > 0 for item in base):
            return None
        scores = [i.score for reference in references for i in reference[name].values() if i.score is not None]
        if not _between(scores, mixture):
            mixture = replace(mixture, best=None, worst=None)  # another metric of a known name
        self.compositions[name] = composition = ItemWeights.of(mixture, base)
        units = np.array([composition.units(reference[name]) for reference in references])
        return units if np.isfinite(units).all() else None

    def _lost(self, name: str, units: Matrix) -> Vector:
        """[items], how much of the score each costs the references on average."""
        composition = self.compositions[name]
        sign = composition.kind.sign
        mean: Vector = units.mean(axis=0)
        return -sign * mean * composition.shares


def _between(scores: Sequence[float], mixture: MeanKind) -> bool:
    """Whether scores lie between the ends that a metric has by its name."""
    highest = math.inf if mixture.best is None else mixture.sign * mixture.best
    lowest = -math.inf if mixture.worst is None else mixture.sign * mixture.worst
    return all(lowest <= mixture.sign * score <= highest for score in scores)


def _features(units: Matrix) -> Matrix:
    """[items, references - 1], how each model differs from the base, in units of all such differences."""
    differences: Matrix = (units[1:] - units[0]).T
    spread = float(differences.std())
    return differences / spread if spread > 0 else differences
