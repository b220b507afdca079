"""Which sources may go together, by what each of them scores alone: subsets that a search tries first.

- Experts: the best source of each slice (soup of category experts, SoCE, arXiv:2511.13254, whose correlations are
  between categories).
- Complements: begins with the best source, and adds the one whose gains over the base, item by item, correlate least
  with those of the sources that are in.
- Selected: greedily adds the source that most raises the mean over the items of the best gain among those that are in
  (forward selection; Nemhauser, Wolsey and Fisher 1978). What the base does better counts 0.

Scores of single models say nothing of a merge. So these are candidates like any other, and are scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

MOST = 6
"""Subsets that are proposed at most."""

_LARGEST = 4
_WORTH = 0.05
"""A source is added greedily for at least this share of the first one's gain."""


@dataclass(frozen=True)
class SliceGains:
    """What each source gains over the base on a slice; higher is better.

    Attributes:
        weight: how much the slice counts.
        scores: [sources], of the slice's score.
        items: [sources, items], in one unit per slice.
        shares: [items], how much each item counts in the slice; they sum to 1.
    """

    weight: float
    scores: Vector
    items: Matrix
    shares: Vector


def subsets(slices: Sequence[SliceGains]) -> list[tuple[str, tuple[int, ...]]]:
    """Up to `MOST` distinct subsets of at least two sources and not all of them: why each is proposed, and the numbers
    of its sources. Sources that gain on no slice are in none."""
    if not slices:
        return []
    count = len(slices[0].scores)
    gains, shares = _standardized(slices)
    able = [i for i in range(count) if any(s.scores[i] > 0 for s in slices)]
    experts = {int(np.argmax(s.scores)) for s in slices if s.scores.max() > 0}
    chains = zip_longest(_greedy(gains, shares, able), _complements(gains, shares, able))
    proposed = [("experts", tuple(sorted(experts)))]
    for greedy, complements in chains:
        proposed += [("selected", greedy)] if greedy else []
        proposed += [("complements", complements)] if complements else []
    distinct: dict[tuple[int, ...], str] = {}
    for reason, members in proposed:
        if 1 < len(members) < count:
            distinct.setdefault(tuple(sorted(members)), reason)
    return [(reason, members) for members, reason in distinct.items()][:MOST]


def _standardized(slices: Sequence[SliceGains]) -> tuple[Matrix, Vector]:
    """The gains of all items in units of their slice's spread, [sources, all items], and the shares of the items."""
    gains, shares = [], []
    total = sum(s.weight for s in slices)
    for s in slices:
        spread = float(np.sqrt(np.mean(s.items**2 @ s.shares)))
        gains.append(s.items / spread if spread > 0 else np.zeros_like(s.items))
        shares.append(s.shares * (s.weight / total if total > 0 else 1 / len(slices)))
    return np.concatenate(gains, axis=1), np.concatenate(shares)


def _greedy(gains: Matrix, shares: Vector, able: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Subsets of 2, 3 and so on, each with one more source."""
    best, members, first = np.zeros(gains.shape[1]), list[int](), 0.0
    left = list(able)
    while left and len(members) < _LARGEST:
        added = {i: float(shares @ (np.maximum(best, gains[i]) - best)) for i in left}
        chosen = max(left, key=added.__getitem__)
        if added[chosen] <= _WORTH * first:
            return
        first = first or added[chosen]
        best = np.maximum(best, gains[chosen])
        members.append(chosen)
        left.remove(chosen)
        if len(members) > 1:
            yield tuple(members)


def _complements(gains: Matrix, shares: Vector, able: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Subsets of 2, 3 and so on, each with one more source."""
    if len(able) < 2:
        return
    correlations = _correlations(gains, shares)
    members = [max(able, key=lambda i: float(shares @ gains[i]))]
    left = [i for i in able if i != members[0]]
    while left and len(members) < _LARGEST:
        members.append(min(left, key=lambda i: float(correlations[i, members].max())))
        left.remove(members[-1])
        yield tuple(members)


def _correlations(gains: Matrix, shares: Vector) -> Matrix:
    """[sources, sources], Pearson's, with the items' shares as weights; 0 of a source whose gains are constant."""
    centred = gains - (gains @ shares)[:, None]
    covariance = (centred * shares) @ centred.T
    scale = np.sqrt(np.diag(covariance))
    product = np.outer(scale, scale)
    correlations: Matrix = np.divide(covariance, product, out=np.zeros_like(covariance), where=product > 0)
    return correlations
