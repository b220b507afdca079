"""The number of items that a search scored, and how many its pruners saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.study.run.trial import Trial


@dataclass(frozen=True)
class ItemsScored:
    """Items that the searched trials of a run were scored on, on the search split. Failed trials do not count.

    scored: the items, each counted once for every candidate.
    in_full: the items that it takes to score all these trials on all items.
    early_stop, racing: the trials that this pruner left with predicted scores, and the items that it saved.
    """

    scored: int
    in_full: int
    early_stop: tuple[int, int]
    racing: tuple[int, int]

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> ItemsScored:
        """Counts the items of a leaderboard's trials."""
        ended = [t for t in trials if t.kind == "search" and t.ranked]
        scored, in_full = sum(t.evaluated for t in ended), sum(t.items for t in ended)
        return cls(scored, in_full, _saved(ended, "early_stop"), _saved(ended, "racing"))

    @property
    def share(self) -> float:
        return self.scored / self.in_full if self.in_full else 1.0

    def __str__(self) -> str:
        text = f"items scored: {self.scored:,} of the {self.in_full:,} of all candidates ({100 * self.share:.0f} %)"
        for name, (trials, items) in (("early stop", self.early_stop), ("racing", self.racing)):
            if trials:
                text += f"; {name} spared {items:,} in {trials} candidates"
        return text


def _saved(trials: Sequence[Trial], by: str) -> tuple[int, int]:
    pruned = [t for t in trials if t.state == "pruned" and t.pruned_by == by]
    return len(pruned), sum(t.items - t.evaluated for t in pruned)
