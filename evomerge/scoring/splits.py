"""Dealing a task's items to the search and the holdout split, by hash.

An item is its content: copies of one document always fall on the same side, and neither the order of a file nor
the number of its items moves any of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evomerge.types import SplitName

Side = Literal["search", "holdout"]
SIDES: tuple[Side, ...] = ("search", "holdout")


def item_key(document: Any) -> str:
    """The identity of a document: the sha256 of its canonical JSON, in hexadecimal."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def position(key: str, task: str, seed: int) -> float:
    """The item's place in [0, 1): uniform over items, independent between tasks and between seeds."""
    digest = hashlib.sha256(json.dumps([seed, task, key]).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def deal(key: str, task: str, seed: int, share: float) -> Side:
    """Deals one item to a side. `share`: the expected part of the items on the search side, 0 to 1."""
    return "search" if position(key, task, seed) < share else "holdout"


@dataclass(frozen=True)
class Dealt:
    """One item of a deal: its task, its index in the task, its key and its position in [0, 1)."""

    task: str
    index: int
    key: str
    position: float


@dataclass(frozen=True)
class Deal:
    """The side of every item of one or several tasks.

    Attributes:
        sides: all items of each side.
        capped: the items that are scored: at most as many as the cap allows.
    """

    sides: Mapping[Side, tuple[Dealt, ...]]
    capped: Mapping[Side, tuple[Dealt, ...]]

    def items(self, split: SplitName) -> tuple[Dealt, ...]:
        """The items of a split that are scored, after the cap; "all" is every item."""
        if split == "all":
            return tuple(item for side in SIDES for item in self.sides[side])
        return self.capped[split]

    def indices(self, split: SplitName, task: str) -> list[int]:
        """Positions in the task's own document order, ascending."""
        return sorted(item.index for item in self.items(split) if item.task == task)

    def keys(self, side: Side, task: str) -> set[str]:
        """All items of one side, also those beyond the cap."""
        return {item.key for item in self.sides[side] if item.task == task}


def deal_all(keys: Mapping[str, Sequence[str]], seed: int, share: float, cap: int | None = None) -> Deal:
    """Deals items to sides.

    Args:
        keys: task -> item keys in document order.
        seed: of the hash.
        share: the expected part of the items on the search side.
        cap: how many items of each side, over all tasks, are scored: those with the lowest positions, so that a smaller
            cap takes a subset of a larger one's.
    """
    every = [
        Dealt(task, index, key, position(key, task, seed))
        for task, column in keys.items()
        for index, key in enumerate(column)
    ]
    sides: dict[Side, tuple[Dealt, ...]] = {
        "search": tuple(item for item in every if item.position < share),
        "holdout": tuple(item for item in every if item.position >= share),
    }
    return Deal(sides, {side: _lowest(items, cap) for side, items in sides.items()})


def _lowest(items: tuple[Dealt, ...], cap: int | None) -> tuple[Dealt, ...]:
    if cap is None or len(items) <= cap:
        return items
    return tuple(sorted(items, key=lambda item: (item.position, item.key, item.index))[:cap])


def labels(keys: Sequence[str]) -> list[str]:
    """Short names of a task's items, distinct: the k-th copy of a document gets the suffix ``~k``."""
    seen: Counter[str] = Counter()
    names = []
    for key in keys:
        seen[key] += 1
        names.append(key[:16] if seen[key] == 1 else f"{key[:16]}~{seen[key]}")
    return names


def _plain(value: Any) -> Any:
    """Replaces what JSON cannot hold (images, dates, numpy numbers) by something that depends on its content only."""
    if isinstance(value, bytes | bytearray):
        return {"sha256": hashlib.sha256(bytes(value)).hexdigest()}
    if hasattr(value, "tobytes"):
        return {"sha256": hashlib.sha256(value.tobytes()).hexdigest()}
    return str(value)
