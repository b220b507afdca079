"""Bands: numbers for parts of a matrix's delta, in evomerge's own form (mergekit has none).

A delta is U diag(s) V^T, its singular value decomposition, with the largest singular values first. A band is a run of
neighbouring directions u_j s_j v_j^T, and has one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from evomerge.files.objects import Cut


@dataclass(frozen=True)
class Bands:
    """One number for each band. `sizes`: the directions of each; None: equal sizes, as `even` makes them."""

    values: tuple[float, ...]
    sizes: tuple[int, ...] | None = None

    def sizes_in(self, directions: int) -> tuple[int, ...]:
        """The sizes for a matrix of so many directions. ValueError where they do not fit it."""
        if self.sizes is not None and sum(self.sizes) != directions:
            raise ValueError(f"bands of {sum(self.sizes)} directions, and the matrix has {directions}")
        if len(self.values) > directions:
            raise ValueError(f"{len(self.values)} bands, and the matrix has {directions} directions")
        return self.sizes or even(directions, len(self.values))

    def __str__(self) -> str:
        return f"{len(self.values)} bands from {min(self.values):g} to {max(self.values):g}"


def even(directions: int, count: int) -> tuple[int, ...]:
    """`count` sizes that differ by 1 at most."""
    return tuple(b - a for a, b in pairwise(i * directions // count for i in range(count + 1)))


def sizes(cut: Cut, shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes of the bands of a tensor: of a matrix, as `cut` says; anything else has one band."""
    if len(shape) != 2:
        return (1,)
    directions = min(shape)
    if cut == "each":
        return (1,) * directions
    if isinstance(cut, int):
        return even(directions, min(cut, directions))
    # Shares: each band ends at its share of the directions, and has one at least.
    ends = [0]
    for number, share in enumerate(accumulate(cut), start=1):
        last = max(directions - (len(cut) - number), ends[-1])
        ends.append(min(max(round(share / sum(cut) * directions), ends[-1] + 1), last))
    return tuple(b - a for a, b in pairwise(ends) if b > a)
