"""Weight matching: the permutations of one model that bring its weights nearest to another's.

Git Re-Basin (Ainsworth et al. 2022, arXiv:2209.04836), algorithm 1: coordinate descent over the groups, each of which
is a linear assignment while all others are held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from evomerge.merging.permutation.symmetries import Symmetries
from evomerge.merging.permutation.weights import Likeness, Orders, Weights, counts, permuted

if TYPE_CHECKING:
    from evomerge.merging.permutation.symmetries import Order

_MOST_PASSES = 100
_GAIN = 1e-7
"""The least gain of a group that counts, relative to the sum of the magnitudes: below are roundings."""


@dataclass(frozen=True)
class Matching:
    """Permutations of a model.

    orders: of each group.
    passes: over all groups, until none gained.
    value: the inner product of both models' weights, the permuted ones.
    """

    orders: Orders
    passes: int
    value: float


def weight_matching(
    symmetries: Symmetries,
    one: Weights,
    other: Weights,
    *,
    seed: int = 0,
    restarts: int = 1,
    start: Mapping[str, Order] | None = None,
    groups: Sequence[str] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Matching:
    """The permutations of `other` that maximize the inner product of its weights with those of `one`.

    Args:
        symmetries: of both models.
        one, other: their tensors, by name.
        seed: of the random orders in which the groups are visited.
        restarts: so many descents; the best one counts.
        start: the permutations to start from; default: none.
        groups: those to match, the others held; default: all.
        progress: called with a text and the share of the current pass that is done.
    """
    draw = np.random.default_rng(seed)
    names = list(symmetries.groups if groups is None else groups)
    begin = {**symmetries.identity(), **(start or {})}
    runs = [_descend(symmetries, names, one, other, begin, draw, progress) for _ in range(max(1, restarts))]
    return max(runs, key=lambda run: run.value)  # the first of the best


def _descend(
    symmetries: Symmetries,
    names: Sequence[str],
    one: Weights,
    other: Weights,
    start: Mapping[str, Order],
    draw: np.random.Generator,
    progress: Callable[[str, float], None] | None,
) -> Matching:
    orders = dict(start)
    passes, moved = 0, True
    while moved and passes < _MOST_PASSES:
        passes, moved = passes + 1, False
        for i, name in enumerate(draw.permutation(np.array(names, dtype=object))):
            if progress is not None:
                progress(f"matching weights: pass {passes}, {name}", i / len(names))
            group, likeness = symmetries.groups[name], likeness_of(symmetries, name, one, other, orders)
            best = likeness.best(group)
            now, then = likeness.value(group, orders[name]), likeness.value(group, best)
            if then - now > _GAIN * max(abs(now), abs(then)):
                orders[name], moved = best, True
    return Matching(orders, passes, _inner_product(symmetries, one, other, orders))


def likeness_of(symmetries: Symmetries, group: str, one: Weights, other: Weights, orders: Orders) -> Likeness:
    """How alike the units of a group are in two models, with all other groups of `other` permuted."""
    likeness = Likeness.none(symmetries.groups[group])
    for name, axis in symmetries.uses(group):
        if not counts(name, one[name]):
            continue
        mine = one[name].movedim(axis, 0)
        its = permuted(symmetries, name, other[name], orders, but=axis).movedim(axis, 0)
        likeness.add(mine, its, symmetries.axes[name][axis], group)
    return likeness


def _inner_product(symmetries: Symmetries, one: Weights, other: Weights, orders: Orders) -> float:
    names = [name for name in symmetries.axes if counts(name, one[name])]
    products = (
        (one[n].float() * permuted(symmetries, n, other[n], orders).float()).sum(dtype=torch.float64) for n in names
    )
    return float(sum(float(p) for p in products))
