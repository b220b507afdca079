"""Items on which two candidates differ, with what people read of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.types import Document, ItemScore

MOST = 10
"""Items of a slice that are listed."""


@dataclass(frozen=True)
class Difference:
    """One item on which two candidates differ.

    Attributes:
        first, second: their scores and answers.
        document: its texts, where the run kept them.
    """

    first: ItemScore
    second: ItemScore
    document: Document | None = None

    @property
    def size(self) -> float:
        """How far the scores are apart, as much as the item counts."""
        return abs((self.first.score or 0.0) - (self.second.score or 0.0)) * self.first.weight


@dataclass(frozen=True)
class Differences:
    """The items of a slice on which two candidates differ.

    Attributes:
        first_better, second_better: how many items either is better on.
        items: how many both were scored on.
        most: those where they differ most, largest first; equal ones by their place in the task's data.
    """

    first_better: int
    second_better: int
    items: int
    most: tuple[Difference, ...]


def differences(
    first: Mapping[str, ItemScore],
    second: Mapping[str, ItemScore],
    sign: int,
    documents: Mapping[str, Document],
    most: int = MOST,
) -> Differences:
    """Compares two candidates on the items of a slice that both were scored on. `sign`: -1 where lower is better."""
    common = [n for n, i in first.items() if i.score is not None and n in second and second[n].score is not None]
    gains = {name: sign * ((first[name].score or 0.0) - (second[name].score or 0.0)) for name in common}
    apart = [Difference(first[name], second[name], documents.get(name)) for name, gain in gains.items() if gain != 0]
    apart.sort(key=lambda d: (-d.size, d.document.number if d.document else 0, d.first.item))
    better = sum(gain > 0 for gain in gains.values())
    return Differences(better, sum(gain < 0 for gain in gains.values()), len(common), tuple(apart[:most]))
