"""Bands: numbers for parts of a matrix's delta, in evomerge's own form (mergekit has none).

A delta is U diag(s) V^T, its singular value decomposition, with the largest singular values first. A band is a run of
neighbouring directions u_j s_j v_j^T, and has one number. Where only the `top` largest directions are cut, all others
are the rest, the last band. The rest is the delta without the top, so that nobody has to know its directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from evomerge.files.objects import Cut, Top


@dataclass(frozen=True)
class Bands:
    """One number for each band.

    Attributes:
        values: the numbers; with a `top`, the last one is the rest's.
        sizes: the directions of each band but the rest; None: equal sizes, as `even` makes them.
        top: how many of the largest directions are cut; None: all, and there is no rest.
    """

    values: tuple[float, ...]
    sizes: tuple[int, ...] | None = None
    top: int | None = None

    @property
    def rest(self) -> float:
        """The number of what is not cut."""
        return 0.0 if self.top is None else self.values[-1]

    def sizes_in(self, directions: int) -> tuple[int, ...]:
        """The sizes for a matrix of so many directions, the rest's too. ValueError where they do not fit it."""
        if self.top is not None and self.top >= directions:
            raise ValueError(f"a top of {self.top} directions and a rest, and the matrix has {directions}")
        count = len(self.values) - (self.top is not None)
        cut, whole = (directions, "the matrix") if self.top is None else (self.top, "the top")
        if self.sizes is not None and sum(self.sizes) != cut:
            raise ValueError(f"bands of {sum(self.sizes)} directions, and {whole} has {cut}")
        if not 0 < count <= cut:
            raise ValueError(f"{count} bands, and {whole} has {cut} directions")
        return (*(self.sizes or even(cut, count)), *([] if self.top is None else [directions - cut]))

    def factored(self, directions: int) -> int:
        """How many directions of such a matrix are factored."""
        return self.top or directions

    def __str__(self) -> str:
        return f"{len(self.values)} bands from {min(self.values):g} to {max(self.values):g}"


def even(directions: int, count: int) -> tuple[int, ...]:
    """`count` sizes that differ by 1 at most."""
    return tuple(b - a for a, b in pairwise(i * directions // count for i in range(count + 1)))


def top(cut: Cut | Top, shape: Sequence[int]) -> int | None:
    """How many directions of a tensor are cut where there is a rest beside them, else None."""
    return cut.count if isinstance(cut, Top) and len(shape) == 2 and min(shape) > cut.count else None


def sizes(cut: Cut | Top, shape: Sequence[int]) -> tuple[int, ...]:
    """The sizes of the bands of a tensor: of a matrix, as `cut` says, with the rest's last; anything else has one."""
    if len(shape) != 2:
        return (1,)
    directions = min(shape)
    if not isinstance(cut, Top):
        return _sizes(cut, directions)
    rest = directions - cut.count
    return (*_sizes(cut.cut, cut.count), rest) if rest > 0 else _sizes(cut.cut, directions)


def _sizes(cut: Cut, directions: int) -> tuple[int, ...]:
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
