"""What slices have in common whose items are the rows of a JSONL file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from evomerge.escape import excerpt
from evomerge.files.objects import FitnessSpec, SliceSpec
from evomerge.scoring.item_files import cluster_names, deal_items
from evomerge.scoring.splits import SIDES, Deal, item_key, labels
from evomerge.scoring.stats.aggregation import ItemMean, MeanKind
from evomerge.types import Document, ItemScore, SplitName

MOST_CHARACTERS = 2000
"""Of an item that is kept for people."""


class FilePass:
    """Items that are loaded and dealt once. Slices with the same data file share the deal, so that no item is on the
    search side of one and on the holdout side of another."""

    def __init__(self, fitness: FitnessSpec, spec: SliceSpec, items: list[dict[str, Any]]) -> None:
        """`items`: the rows of the slice's file. InputError where they lack the field of its `cluster`."""
        assert spec.data is not None  # the fitness file's reader asked for it
        self.spec, self.items = spec, items
        self.labels = labels([item_key(item) for item in self.items])
        named = [] if spec.cluster is None else zip(self.labels, cluster_names(spec, self.items), strict=True)
        self.clusters: dict[str, str] = dict(named)
        self._task = spec.data.name
        self.deal: Deal = deal_items(fitness, spec, self.items)

    @property
    def sign(self) -> int:
        return -1 if self.spec.direction == "lower" else 1

    @property
    def aggregation(self) -> ItemMean:
        return ItemMean(MeanKind(self.sign))

    def names(self, split: SplitName) -> tuple[str, ...]:
        """The items of a split, in the order in which they are reported."""
        return tuple(self.labels[i] for i in self.deal.indices(split, self._task))

    def prepare(self, split: SplitName, names: frozenset[str] | None = None) -> None:
        """Does nothing: the user's code makes its own prompts."""

    def documents(self, split: SplitName) -> Iterator[Document]:
        """What people read of the items of a split: the rows of the file."""
        for at in self.rows(split):
            text = json.dumps(self.items[at], ensure_ascii=False, indent=1, default=str)
            yield Document(self.labels[at], split, at, excerpt(text, MOST_CHARACTERS))

    def rows(self, split: SplitName, names: frozenset[str] | None = None) -> list[int]:
        """The rows of a split's items, of those in `names` only."""
        return [i for i in self.deal.indices(split, self._task) if names is None or self.labels[i] in names]

    def scored(self, row: int, score: float, answer: str | None = None) -> ItemScore:
        """The score of a row."""
        name = self.labels[row]
        return ItemScore(name, score, 1.0, score, self.clusters.get(name), answer)

    def digest_with(self, code: list[str]) -> str:
        """sha256 over the digests of what scores, the items and the side of each."""
        parts = [*code, [[side, sorted(item.key for item in self.deal.items(side))] for side in SIDES]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
