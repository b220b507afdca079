"""What a slice is: `ScoredSlice` over a model, `SliceInfo` without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.files.objects import FloorSpec
from evomerge.scoring.splits import Deal
from evomerge.types import Document, SliceScore, SplitName

if TYPE_CHECKING:  # numpy and torch
    from evomerge.scoring.stats.aggregation import Aggregation
    from evomerge.scoring.tasks.proxy_loss import ProxyLoss


RESIDENT = "resident"
"""The engine of slices that the model in memory answers."""


@dataclass(frozen=True)
class SliceInfo:
    """Describes a slice. It is picklable: other processes get it.

    Attributes:
        name: the slice's key in the fitness file.
        sign: -1 where the metric's natural direction is lower-is-better, else 1.
        metric: its name as lm-eval reports it.
        weight: how much it counts in the objective.
        floor: the worst acceptable score.
        items: the items of the search split (`ItemScore.item`), in the order in which they are reported.
        aggregation: makes the score of all items; None where the score is no mean of items (F1, BLEU).
        no_proxy_loss: why the slice has no proxy loss; empty if it has one.
        n_holdout: the number of items of the holdout split.
        n_read: how many tokens a model reads to be scored on the items; None where that is unknown.
        learns: whether the proxy loss has to be given a source's answers first (`Suite.learn`).
        is_measure: whether the score is a size, which is exact and costs nothing: its one item counts nowhere.
        engine: what answers: `RESIDENT`, or a serving engine and its version.
        doubts: what its task probably does otherwise than its author meant, a line each.
    """

    name: str
    sign: int
    metric: str
    weight: float
    floor: FloorSpec | None
    items: tuple[str, ...] = field(repr=False)
    aggregation: Aggregation | None
    no_proxy_loss: str
    n_holdout: int = 0
    doubts: tuple[str, ...] = ()
    n_read: int | None = None
    learns: bool = False
    is_measure: bool = False
    engine: str = RESIDENT

    @property
    def facts(self) -> dict[str, Any]:
        """What a run's storage tells readers of it."""
        known = {"metric": self.metric, "sign": self.sign, "weight": self.weight}
        known = {**known, "measure": True} if self.is_measure else known
        return known if self.engine == RESIDENT else {**known, "engine": self.engine}

    def show(self, value: float) -> float:
        """Turns an oriented value (higher is better) into the metric's own number."""
        return self.sign * value


class Source(Protocol):
    """Asks the model about items. Slices that ask the same about the same items share a source."""

    @property
    def deal(self) -> Deal: ...
    def names(self, split: SplitName) -> tuple[str, ...]: ...
    def prepare(self, split: SplitName, names: frozenset[str] | None = None) -> Any: ...
    def run(self, split: SplitName, names: frozenset[str] | None = None) -> Any: ...
    def digest(self) -> str: ...
    def documents(self, split: SplitName) -> Iterator[Document]: ...


@dataclass(frozen=True)
class ScoredSlice:
    """Scores a model on one slice.

    Attributes:
        info: describes the slice.
        source: asks the model.
        read: makes the score out of what `source.run` returned.
        proxy_loss: the slice's differentiable loss, if it has one.
    """

    info: SliceInfo
    source: Source
    read: Callable[[Any], SliceScore]
    proxy_loss: ProxyLoss | None = None

    @property
    def counts(self) -> dict[SplitName, int]:
        """The number of items in each split."""
        splits: tuple[SplitName, ...] = ("search", "holdout", "all")
        return {split: len(self.source.deal.items(split)) for split in splits}


@dataclass(frozen=True)
class SuiteInfo:
    """Describes a suite. It is picklable.

    Attributes:
        slices: slice name -> info.
        pools: the slices' names; slices that share a source are together, since one pass scores them all.
        front: whether slices are traded off against each other, and no one number is followed.
    """

    slices: Mapping[str, SliceInfo]
    pools: tuple[tuple[str, ...], ...]
    front: bool = False

    @property
    def engines(self) -> dict[str, str]:
        """The engine of each slice that the resident model does not answer."""
        return {name: info.engine for name, info in self.slices.items() if info.engine != RESIDENT}

    @property
    def weights(self) -> dict[str, float]:
        """Slice name -> weight, as the objectives take them. The number that stands beside a front leaves sizes out:
        in it a million of parameters would drown every score."""
        left_out = self.front and any(info.weight > 0 and not info.is_measure for info in self.slices.values())
        return {name: 0.0 if left_out and info.is_measure else info.weight for name, info in self.slices.items()}

    @property
    def n_read(self) -> int | None:
        """How many tokens a model reads to be scored on all items of the search split; None where that is unknown."""
        numbers = [self.slices[pool[0]].n_read for pool in self.pools]
        return None if None in numbers else sum(n for n in numbers if n is not None)

    def count(self, items: Mapping[str, Sized]) -> int:
        """How many items these are, by slice; those that several slices share count once."""
        asked = (pool[0] for pool in self.pools if not self.slices[pool[0]].is_measure)
        return sum(len(items.get(name, ())) for name in asked)
