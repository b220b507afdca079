"""Items on which two candidates differ, in their scores or in what they answered, with what people read of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.types import Document, ItemScore

Lengths = Mapping[str, Mapping[str, float]]
"""Item -> measure of its answers (`files.objects.LENGTHS`) -> value."""


@dataclass(frozen=True)
class Difference:
    """One item on which two candidates differ.

    Attributes:
        first, second: their scores and answers.
        document: its texts, where the run kept them.
        lengths: of the answers of both, where slices measure them.
    """

    first: ItemScore
    second: ItemScore
    document: Document | None = None
    lengths: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})

    @property
    def size(self) -> float:
        """How far the scores are apart, as much as the item counts; 0 where one has none."""
        return abs(_gain(self.first, self.second) or 0.0) * self.first.weight

    @property
    def place(self) -> tuple[float, bool, int, str]:
        """Its place in the list, as `Differences.most` says."""
        number = self.document.number if self.document else 0
        return -self.size, self.first.answer == self.second.answer, number, self.first.item


@dataclass(frozen=True)
class Differences:
    """The items of a slice on which two candidates differ.

    Attributes:
        first_better, second_better: how many items either is better on.
        items: how many both were scored on.
        answered: how many have the answers of both.
        answers_differ: on how many of these the texts are not the same.
        differ: how many differ in score or text.
        most: those where they differ most: by their scores, then those with other answers before those with other texts
            only; equal ones by their place in the task's data.
    """

    first_better: int
    second_better: int
    items: int
    answered: int
    answers_differ: int
    differ: int
    most: tuple[Difference, ...]


def differences(
    first: Mapping[str, ItemScore],
    second: Mapping[str, ItemScore],
    sign: int,
    documents: Mapping[str, Document],
    most: int,
    lengths: tuple[Lengths, Lengths] = ({}, {}),
) -> Differences:
    """Compares two candidates on the items of a slice that both were asked.

    Args:
        first, second: their items, by name.
        sign: -1 where lower is better.
        documents: item -> its texts.
        most: so many items are listed.
        lengths: of the answers of both.
    """
    pairs = {name: (item, second[name]) for name, item in first.items() if name in second}
    gains = {name: sign * gain for name, pair in pairs.items() if (gain := _gain(*pair)) is not None}
    answered = {name: pair for name, pair in pairs.items() if None not in (pair[0].text, pair[1].text)}
    other = {name for name, (a, b) in answered.items() if a.text != b.text}
    apart = [
        Difference(*pair, documents.get(name), (lengths[0].get(name, {}), lengths[1].get(name, {})))
        for name, pair in pairs.items()
        if gains.get(name) or name in other
    ]
    apart.sort(key=lambda difference: difference.place)
    return Differences(
        first_better=sum(gain > 0 for gain in gains.values()),
        second_better=sum(gain < 0 for gain in gains.values()),
        items=len(gains),
        answered=len(answered),
        answers_differ=len(other),
        differ=len(apart),
        most=tuple(apart[:most]),
    )


def _gain(first: ItemScore, second: ItemScore) -> float | None:
    return None if first.score is None or second.score is None else first.score - second.score
