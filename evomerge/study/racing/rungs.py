"""The order in which a candidate is scored on the items: few that represent all first, then more, then the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.files.objects import FitnessSpec
from evomerge.scoring.slices import SuiteInfo
from evomerge.scoring.stats.aggregation import ItemWeights, MeanKind
from evomerge.scoring.stats.anchors import Matrix, Strata, Vector, anchors
from evomerge.scoring.stats.forecast import Forecaster
from evomerge.study.run.items import Items

ItemNames = dict[str, frozenset[str]]
"""Slice -> names of items."""

_SHARES = (0.1, 0.2, 0.4)
"""The shares of the items on the rungs of a race: it begins on the first one, and skips those that would decide too
little. The last rung has all."""

_LEAST, _LEAST_RIGHT_OR_WRONG = 8, 16
"""The fewest items of a slice on a rung. A right or wrong answer says less than a graded one."""

_CHUNKS = 4
"""The number of parts of the last rung, between which a candidate may be stopped."""


@dataclass(frozen=True)
class Pool:
    """Slices that share their items.

    Attributes:
        slices: their names.
        order: names of the items, the most representative first.
        late: the same items, those first on which the references lose most.
        whole: whether all are scored on the first rung: some slice's score is no mean of its items, or they are few.
        least: the fewest items on a rung.
        counted: whether its items count: a measure asks nothing.
    """

    slices: tuple[str, ...]
    order: tuple[str, ...]
    late: tuple[str, ...]
    whole: bool
    least: int = _LEAST
    counted: bool = True

    def first(self, share: float) -> frozenset[str]:
        """The items of a rung that has `share` of them."""
        count = len(self.order) if self.whole else max(self.least, math.ceil(share * len(self.order)))
        return frozenset(self.order[:count])

    def chunks(self, scored: frozenset[str], size: int) -> list[frozenset[str]]:
        """The items that are not scored yet, in parts of at least `size` and nearly equal numbers."""
        left = [name for name in self.late if name not in scored]
        if self.whole or not left:
            return [frozenset(left)] if left else []
        step = math.ceil(len(left) / max(1, min(_CHUNKS, len(left) // max(1, size))))
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
        self.ladder = self._rungs()
        self.rungs = self.ladder if "racing" in fitness.pruning else []

    def __str__(self) -> str:
        early = ", unless a floor is out of reach" if "early_stop" in self.fitness.pruning else ""
        if not self.rungs:
            few = "; they are too few for a race" if "racing" in self.fitness.pruning else ""
            return f"a candidate is scored on all {self.total} of the search split{early}{few}"
        first = f"a candidate is scored on {self._size(self.rungs[0])}, then as many as tell it apart, up to all "
        names = [name for pool in self._counted if pool.whole for name in pool.slices]
        whole = f"; {', '.join(names)}: all at once" if names else ""
        return f"{first}{self.total} of the search split{early}{whole}"

    @property
    def total(self) -> int:
        """The number of items that a candidate is scored on in full."""
        return sum(len(pool.order) for pool in self._counted)

    def count(self, items: Items) -> int:
        """The number of items that a candidate was scored on."""
        return sum(len(items.get(pool.slices[0], ())) for pool in self._counted)

    def rung(self, share: float) -> ItemNames:
        return {name: pool.first(share) for pool in self.pools for name in pool.slices}

    def part(self, rung: ItemNames) -> float:
        """The share of all items that a rung has. Slices that are asked whole say nothing of how much it tells."""
        raced = [pool for pool in self.pools if not pool.whole]
        return sum(len(rung[p.slices[0]]) for p in raced) / sum(len(p.order) for p in raced)

    def next_rung(self, rung: ItemNames, part: float) -> float:
        """The share of the smallest rung behind `rung` (empty: of all) that has at least `part` of the items; 1 is the
        last one."""
        now = self.part(rung) if rung else 0.0
        parts = {share: self.part(self.rung(share)) for share in self.rungs}
        return next((share for share, has in parts.items() if has >= part and has > now), 1.0)

    def is_rung(self, items: Items) -> bool:
        """Whether these are exactly the items of a rung."""
        names = {name: scores.keys() for name, scores in items.items()}
        return any(names == self.rung(share) for share in self.rungs)

    def _rungs(self) -> list[float]:
        """The shares of the rungs that have more items than the one before, and fewer than all."""
        shares: list[float] = []
        for share in _SHARES:
            if self._size(shares[-1] if shares else 0.0) < self._size(share) < self.total or not shares:
                shares.append(share)
        return [share for share in shares if self._size(share) < self.total]

    def _size(self, share: float) -> int:
        return sum(len(pool.first(share)) for pool in self._counted)

    @property
    def _counted(self) -> list[Pool]:
        return [pool for pool in self.pools if pool.counted]

    def _pool(self, suite: SuiteInfo, slices: tuple[str, ...], references: Sequence[Items]) -> Pool:
        names = suite.slices[slices[0]].items
        possible = [self._units(suite, name, references) for name in slices]
        units = [u for u in possible if u is not None]
        if len(units) < len(slices):
            for name in slices:
                self.item_weights.pop(name, None)
            counted = not suite.slices[slices[0]].is_measure
            return Pool(slices, names, names, whole=True, counted=counted)
        # Items are alike where the references differ alike on them; anchors represent such items. In all other
        # respects the order is random.
        drawn = np.random.default_rng([self.fitness.split_seed, len(names)]).permutation(len(names))
        features = np.concatenate([_features(u) for u in units], axis=1)
        strata = Strata.by(features) if "representative" in self.fitness.pruning else None
        for name in slices:
            self.forecasters[name] = Forecaster(self.item_weights[name], strata)
        shares: Vector = np.mean([self.item_weights[name].shares for name in slices], axis=0)
        order = [int(at) for at in drawn]
        if strata is not None:
            mixed = Strata(strata.of[drawn], strata.distances)
            first = [int(drawn[at]) for at in anchors(mixed, shares[drawn], math.ceil(_SHARES[-1] * len(names)))]
            chosen = set(first)
            order = [*first, *(at for at in order if at not in chosen)]
        lost = sum(self._lost(name, u) for name, u in zip(slices, units, strict=True))
        late = np.argsort(-np.asarray(lost), kind="stable")
        least = _LEAST_RIGHT_OR_WRONG if all(np.isin(u, (0.0, 1.0)).all() for u in units) else _LEAST
        # Half of few items tell nearly nothing apart: they are asked at once.
        whole = len(names) <= 2 * least
        return Pool(slices, tuple(names[at] for at in order), tuple(names[at] for at in late), whole, least)

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
