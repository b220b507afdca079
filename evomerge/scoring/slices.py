"""What a slice is: over a model, and without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.files.objects import FloorSpec
from evomerge.scoring.splits import Deal
from evomerge.types import ItemScore, SliceScore, SplitName

if TYPE_CHECKING:
    from evomerge.scoring.stats.aggregation import MeanKind
    from evomerge.scoring.tasks.proxy_loss import Surrogate


class Source(Protocol):
    """Where a slice's scores come from: the items, dealt, and one pass of the model over them. Slices that ask the
    same of the same items share one."""

    @property
    def deal(self) -> Deal: ...
    def names(self, split: SplitName) -> tuple[str, ...]: ...
    def prepare(self, split: SplitName, names: frozenset[str] | None = None) -> Any: ...
    def run(self, split: SplitName, names: frozenset[str] | None = None) -> Any: ...
    def digest(self) -> str: ...


@dataclass(frozen=True)
class Named:
    """What a slice and its outline share. `sign` is -1 where the metric's natural direction is lower-is-better;
    `metric` is its name as lm-eval reports it."""

    name: str
    sign: int
    metric: str
    weight: float
    floor: FloorSpec | None

    def show(self, value: float) -> float:
        """An oriented value (higher is better) as the metric's own number."""
        return self.sign * value


@dataclass(frozen=True)
class Slice(Named):
    """One slice, ready to be scored. `read` makes the score out of what `source.run` returned. A slice whose score is
    a mean of its items' has a `mixture`, and `total`, which makes the score of items that were asked in pieces. One
    without a `surrogate` says why in `no_surrogate`."""

    source: Source
    read: Callable[[Any], SliceScore]
    mixture: MeanKind | None = None
    total: Callable[[Sequence[ItemScore]], SliceScore] | None = None
    surrogate: Surrogate | None = None
    no_surrogate: str = ""

    @property
    def counts(self) -> dict[SplitName, int]:
        """The number of items that each split scores."""
        splits: tuple[SplitName, ...] = ("search", "holdout", "all")
        return {split: len(self.source.deal.items(split)) for split in splits}


@dataclass(frozen=True)
class SliceInfo(Named):
    """What is known of a slice without its model; `names` are the items of the search split, in the order in which they
    are reported. `no_surrogate` says why the slice has no surrogate, and is empty if it has one."""

    mixture: MeanKind | None
    names: tuple[str, ...] = field(repr=False)
    no_surrogate: str


@dataclass(frozen=True)
class SuiteInfo:
    """What is known of a suite without its model, for those who do not hold it. `pools` are the slices, those together
    that ask the same of the same items: asked once, they are all answered."""

    slices: Mapping[str, SliceInfo]
    pools: tuple[tuple[str, ...], ...]

    @property
    def weights(self) -> dict[str, float]:
        """Slice name -> weight, as the objectives take them."""
        return {name: info.weight for name, info in self.slices.items()}
