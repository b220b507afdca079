"""Which entries of which tensors move together when the hidden units of one model are permuted.

A *group* is a set of units whose order does not change the model's function: the features of the residual stream, the
hidden units of an MLP, the heads of a layer, the channels of a convolution. A unit may have members of its own, which
are permuted inside it: with grouped queries a unit is a head of keys and values, its members are its query heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Order = NDArray[np.int64]
    """What stands at each place: the old places, in their new order."""


@dataclass(frozen=True)
class Group:
    """Units that are permuted together.

    units: how many there are.
    members: of each unit, permuted inside it; 1: a unit is its one member.
    """

    units: int
    members: int = 1

    @property
    def identity(self) -> Order:
        """The order in which nothing has moved."""
        import numpy as np

        return np.arange(self.units * self.members)


@dataclass(frozen=True)
class AxisPart:
    """A part of an axis that follows a group: `entries` [count, block] are the places of each unit, or of each member
    of each unit, along the axis."""

    group: str
    of_members: bool
    entries: Order


@dataclass(frozen=True)
class Symmetries:
    """The groups of a model, and the axes that follow them.

    groups: by name.
    axes: tensor -> for each of its axes the parts that follow a group; none of an axis that stays as it is.
    """

    groups: Mapping[str, Group]
    axes: Mapping[str, tuple[tuple[AxisPart, ...], ...]]

    def uses(self, group: str) -> Iterator[tuple[str, int]]:
        """The tensors and axes that follow a group."""
        for tensor, axes in self.axes.items():
            for axis, parts in enumerate(axes):
                if any(part.group == group for part in parts):
                    yield tensor, axis

    def identity(self) -> dict[str, Order]:
        """The permutations that move nothing."""
        return {name: group.identity for name, group in self.groups.items()}

    def random(self, seed: int) -> dict[str, Order]:
        """Permutations drawn at random; members stay with the other members of their unit."""
        import numpy as np

        draw = np.random.default_rng(seed)
        orders = {}
        for name, group in self.groups.items():
            units = draw.permutation(group.units)
            orders[name] = np.concatenate([u * group.members + draw.permutation(group.members) for u in units])
        return orders


def unit_order(group: Group, order: Order) -> Order:
    """The order of the units, from that of all members."""
    return order[:: group.members] // group.members


def axis_order(symmetries: Symmetries, parts: tuple[AxisPart, ...], length: int, orders: Mapping[str, Order]) -> Order:
    """The order of the entries of an axis of `length`, once the groups of its parts are in `orders`: place i of the
    result holds the old place that its entry comes from."""
    import numpy as np

    result = np.arange(length)
    for part in parts:
        order = orders[part.group]
        if not part.of_members:
            order = unit_order(symmetries.groups[part.group], order)
        result[part.entries.ravel()] = part.entries[order].ravel()
    return result
