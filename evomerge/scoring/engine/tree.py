"""Rows of a batch: each the prefix tree of some windows, so that what they share is computed once.

A tree is laid out in depth-first order: a node's descendants follow it directly, up to its end. So node k may be seen
from node q exactly if k <= q < end[k], and a node's position in its sequence is its depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.scoring.engine.encode import Tokens, Window

LENGTH = 512
"""Rows may always have this many nodes, beyond that twice their longest window: a mask has their square."""


@dataclass(eq=False)
class Row:
    """The nodes of a prefix tree in depth-first order: their tokens, depths and ends, [L] each. `places` holds for
    each window (by its number) the T nodes whose logits it needs. Without branches the tree is a plain sequence."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    places: dict[int, list[int]] = field(default_factory=dict)
    longest: int = 0
    branched: bool = False
    _path: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, number: int, window: Window, shared: int) -> None:
        """Lay a window down that begins with the first `shared` tokens of the one before."""
        self.branched |= shared < len(self._path)
        for node in self._path[shared:]:
            self.ends[node] = len(self)
        start, size = len(self), len(window.tokens)
        self._path[shared:] = range(start, start + size - shared)
        self.tokens.extend(window.tokens[shared:].tolist())
        self.depths.extend(range(shared, size))
        self.ends.extend([0] * (size - shared))
        self.places[number] = self._path[-len(window.targets) :]
        self.longest = max(self.longest, size)

    def close(self) -> Row:
        for node in self._path:
            self.ends[node] = len(self)
        self._path = []
        return self

    def grows_straight(self, shared: int) -> bool:
        """Whether a window that shares so much with the one before only makes a plain sequence longer."""
        return not self.branched and shared == len(self._path)


@dataclass(frozen=True)
class Limits:
    """When windows may branch off a row: not at all (`branches` false), only those of up to `window` tokens (beyond,
    the model's layers see less than all), in rows of up to `times` their longest window. `hidden` is the model's width,
    which says what a token costs."""

    branches: bool
    window: float
    times: int
    hidden: int

    def admit(self, row: Row, window: Window, shared: int) -> bool:
        """Whether the window, which begins with `shared` tokens of the one before, joins the row."""
        if row.grows_straight(shared):
            return True
        size = len(window.tokens)
        longest = max(row.longest, size)
        room = min(max(LENGTH, 2 * longest), self.times * longest)
        fits = len(row) + size - shared <= room and longest <= self.window
        return self.branches and fits and self._saves(len(row), size, shared)

    def _saves(self, row: int, size: int, shared: int) -> bool:
        """Shared tokens are saved; in return attention looks at all pairs of the longer row. A token costs a layer
        12 hidden^2 multiplications, a pair 2 hidden; attention does half as many in a second as a matrix product."""
        pairs = (row + size - shared) ** 2 - row**2 - size**2
        return shared * 3 * self.hidden > pairs


def pack(windows: Sequence[Window], limits: Limits) -> list[Row]:
    """Lay every window into one row, longest rows first. Equal windows share all their nodes."""
    return sorted(_rows(windows, limits), key=len, reverse=True)


def _rows(windows: Sequence[Window], limits: Limits) -> Iterator[Row]:
    """In lexicographic order the window before is the one that shares most with the next, and the nodes come in
    depth-first order by themselves."""
    row, before = Row(), np.empty(0, np.int32)
    for number in sorted(range(len(windows)), key=lambda i: windows[i].tokens.astype(">i4").tobytes()):
        window = windows[number]
        shared = _common(before, window.tokens)
        if not limits.admit(row, window, shared):
            yield row.close()
            row, shared = Row(), 0
        row.add(number, window, shared)
        before = window.tokens
    if len(row):
        yield row.close()


def _common(a: Tokens, b: Tokens) -> int:
    """The length of the common start."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size
