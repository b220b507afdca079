"""Values that pass between the rooms: dimensions, genomes, outcomes, scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Value = float | str
"""One gene's value: a number, or the name of a choice."""

Genome = dict[str, Value]
"""One value for every dimension, by its key, such as ``weight[shipping,0]``."""

SplitName = Literal["search", "holdout", "all"]


@dataclass(frozen=True)
class Dimension:
    """One searched coordinate: a numeric range, or (`choices`) a set of names.

    `key` is the gene's name with its place on the gene's axes: ``density[refunds]``; `gene` and `place` (axis -> where)
    are its parts, for those who look at several dimensions of a gene together.
    """

    key: str
    low: float = 0.0
    high: float = 1.0
    init: Value = 0.5
    log: bool = False
    choices: tuple[str, ...] = ()
    gene: str = ""
    place: Mapping[str, str] = field(default_factory=dict, hash=False)

    def tidy(self, value: Value) -> Value:
        """The legal value nearest to `value`: a known choice, or a number inside the range, rounded to 6
        significant digits so that the exported recipe is short and still exactly the one that was scored."""
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{self.key}: {value!r} is not one of {', '.join(self.choices)}")
            return value
        number = float(f"{float(value):.6g}")
        return min(max(number, self.low), self.high)


@dataclass(frozen=True)
class Slopes:
    """What smooth stand-ins for the metrics say of a trial, in the units of its `Outcome`.

    Attributes:
        objective: how it changes with each of the D dimensions, in their order and units: [D].
        margins: the same for each of `Outcome.margins`: [floors][D].
        checked: the objective and the margins by items that the slopes were not taken on.
    """

    objective: tuple[float, ...]
    margins: tuple[tuple[float, ...], ...]
    checked: tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class Outcome:
    """What the optimizer learns of one trial. `objective`: higher is better; `shortfall`: total
    normalised distance below the floors, 0 when feasible; both are ignored where the trial failed.

    `margins` are the signed distances above each floor, in the same units (below 0: missed); `values` the oriented
    scores of the slices that count. Both are empty where they are not known, and have one order in a study. `slopes`
    are there where they were asked for (`Proposal.needs_gradient`).
    """

    failed: bool = False
    feasible: bool = False
    objective: float = -math.inf
    shortfall: float = math.inf
    margins: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    slopes: Slopes | None = None


@dataclass(frozen=True)
class ItemScore:
    """One item's part of a slice's score.

    `item` identifies the document whatever its position; `score` is the item's own value in the metric's
    natural direction (None where the metric has no per-item number); `weight` its share in the mean (1.0,
    or for example the bytes of a text); `raw` what the metric returned for it, JSON-compatible; `cluster` what items
    with a common origin share, where the slice names such a field; `answer` what the model answered, cut, where that is
    a text or a choice; `written` the text from which a filter took this answer, cut, where that is another.
    """

    item: str
    score: float | None
    weight: float = 1.0
    raw: Any = None
    cluster: str | None = None
    answer: str | None = None
    written: str | None = None

    @property
    def text(self) -> str | None:
        """What the model wrote or chose, as it was kept."""
        return self.answer if self.written is None else self.written


@dataclass(frozen=True)
class Document:
    """What people read of an item.

    Attributes:
        item: as `ItemScore.item`.
        split: the items that it belongs to.
        number: its position in the data of its task, from 0.
        prompt: its text; long ones without their middle.
        choices: that a model chooses from, if it does.
        answer: the right one; None where there is none, or it is not known.
    """

    item: str
    split: SplitName
    number: int
    prompt: str
    choices: tuple[str, ...] = ()
    answer: str | None = None


@dataclass(frozen=True)
class SliceScore:
    """A slice's score of one candidate. `value` is oriented: higher is always better (the sign of a
    lower-is-better metric was flipped once, when it was made). `stderr` is None where unknown. `loss`: the mean
    negative log-likelihood of the right answers, in nats per token, where the requests tell it."""

    value: float
    stderr: float | None
    items: tuple[ItemScore, ...] = field(default=(), repr=False)
    loss: float | None = None


Scores = Mapping[str, SliceScore]
"""Slice name -> score."""


def is_size(value: float) -> bool:
    """Whether a score is written as a size: a whole number beyond 1. Shares of items are never beyond 1, and other
    means hardly ever whole."""
    return math.isfinite(value) and abs(value) > 1 and value == int(value)


def shown(value: float) -> str:
    """Writes a score on a line of text."""
    return f"{value:,.0f}" if is_size(value) else f"{value:.4f}"
