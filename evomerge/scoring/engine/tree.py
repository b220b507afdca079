"""Lays windows into rows: each row is the prefix tree of some windows, so that what they share is computed once.

A tree is laid out in depth-first order: a node's descendants follow it directly, up to its end. So node q sees node k
if and only if k <= q < end[k], and a node's position in its sequence is its depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from evomerge.scoring.engine.encode import Tokens, Window

LENGTH = 512
"""How many nodes any row may have; a longer row, twice its longest window. A mask has the square of it."""


@dataclass(eq=False)
class Row:
    """The nodes of a prefix tree in depth-first order. Without branches it is a plain sequence.

    Attributes:
        tokens: [L], the token of each node.
        depths: [L], its position in its sequence.
        ends: [L], where its descendants end.
        places: window number -> the T nodes whose logits it needs.
        longest: the length of the longest window.
        branched: whether it has branches.
    """

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
        """Adds a window that begins with the first `shared` tokens of the window before."""
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
        """Whether a window that shares `shared` tokens with the window before only makes a plain sequence longer."""
        return not self.branched and shared == len(self._path)


@dataclass(frozen=True)
class Limits:
    """Decides which windows may join a row.

    Attributes:
        branches: whether rows may have branches.
        window: the longest window that may branch off: beyond, some layers do not see all tokens.
        times: a row with branches has at most this many times the length of its longest window.
        hidden: the model's width, for the cost of a token.
    """

    branches: bool
    window: float
    times: int
    hidden: int

    def admit(self, row: Row, window: Window, shared: int) -> bool:
        """Whether a window, which begins with `shared` tokens of the window before, joins the row."""
        if row.grows_straight(shared):
            return True
        size = len(window.tokens)
        longest = max(row.longest, size)
        room = min(max(LENGTH, 2 * longest), self.times * longest)
        fits = len(row) + size - shared <= room and longest <= self.window
        return self.branches and fits and self._saves(len(row), size, shared)

    def _saves(self, row: int, size: int, shared: int) -> bool:
        """Whether sharing saves time: fewer tokens, but attention computes all pairs of the longer row."""
        # A token costs a layer 12 hidden^2 multiplications, a pair 2 hidden, at half the speed:
        # shared * 12 hidden^2 > 2 * pairs * 2 hidden.
        pairs = (row + size - shared) ** 2 - row**2 - size**2
        return shared * 3 * self.hidden > pairs


def pack(windows: Sequence[Window], limits: Limits) -> list[Row]:
    """Lays every window into a row; returns the longest rows first. Equal windows share all their nodes."""
    return sorted(_rows(windows, limits), key=len, reverse=True)


def _rows(windows: Sequence[Window], limits: Limits) -> Iterator[Row]:
    """Takes windows in lexicographic order: the window before shares most with the next, and nodes come in depth-first
    order."""
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
