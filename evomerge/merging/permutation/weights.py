"""Permutes tensors by orders of units, and measures how alike the units of two models are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from evomerge.merging.permutation.symmetries import AxisPart, Group, Symmetries, axis_order, unit_order

if TYPE_CHECKING:
    from evomerge.merging.permutation.symmetries import Order

Weights = Mapping[str, Tensor]
Orders = dict[str, "Order"]
"""Group -> which unit of the model stands at each place; where units have members, the order of all members."""

_STATISTICS = ("running_mean", "running_var")


def counts(name: str, tensor: Tensor) -> bool:
    """Whether a tensor counts for how alike two models are: floating-point weights do, statistics do not."""
    return tensor.is_floating_point() and not name.endswith(_STATISTICS)


def permuted(symmetries: Symmetries, name: str, tensor: Tensor, orders: Mapping[str, Order], but: int = -1) -> Tensor:
    """A tensor with its axes in the given orders; axis `but` stays as it is. The values are not touched."""
    for axis, parts in enumerate(symmetries.axes.get(name, ())):
        if parts and axis != but:
            order = axis_order(symmetries, parts, tensor.shape[axis], orders)
            tensor = tensor.index_select(axis, torch.from_numpy(order).to(tensor.device))
    return tensor


def permuted_weights(symmetries: Symmetries, weights: Weights, orders: Mapping[str, Order]) -> dict[str, Tensor]:
    """All tensors of a model, permuted."""
    return {name: permuted(symmetries, name, tensor, orders) for name, tensor in weights.items()}


@dataclass
class Likeness:
    """How alike each unit of one model is to each unit of another.

    units: [units, units] of what belongs to a unit as a whole.
    members: [members, members] of what belongs to its members.
    """

    units: NDArray[np.float64]
    members: NDArray[np.float64]

    @classmethod
    def none(cls, group: Group) -> Likeness:
        n, m = group.units, group.units * group.members
        units = np.zeros((n, n))
        return cls(units, units if group.members == 1 else np.zeros((m, m)))

    def add(self, one: Tensor, other: Tensor, parts: Sequence[AxisPart], group: str) -> None:
        """Adds the inner products of two tensors' entries along their first axis, unit by unit."""
        for part in (p for p in parts if p.group == group):
            entries = torch.from_numpy(part.entries.ravel()).to(one.device)
            rows = [t.index_select(0, entries).reshape(len(part.entries), -1).float() for t in (one, other)]
            products = (rows[0] @ rows[1].T).double().cpu().numpy()
            target = self.members if part.of_members else self.units
            target += products

    def best(self, group: Group) -> Order:
        """The order with the largest sum: a linear assignment of units, each worth what the best assignment of its
        members is worth."""
        if group.members == 1:
            return np.asarray(linear_sum_assignment(self._whole, maximize=True)[1])
        size, inner = group.members, np.empty((group.units, group.units, group.members), np.int64)
        worth = self.units.copy()
        for i in range(group.units):
            for j in range(group.units):
                block = self.members[i * size : (i + 1) * size, j * size : (j + 1) * size]
                rows, columns = linear_sum_assignment(block, maximize=True)
                inner[i, j] = columns
                worth[i, j] += block[rows, columns].sum()
        units = linear_sum_assignment(worth, maximize=True)[1]
        return np.concatenate([j * size + inner[i, j] for i, j in enumerate(units)])

    def value(self, group: Group, order: Order) -> float:
        """The sum of an order."""
        places = np.arange(len(order))
        if group.members == 1:
            return float(self._whole[places, order].sum())
        units = unit_order(group, order)
        return float(self.units[np.arange(len(units)), units].sum() + self.members[places, order].sum())

    @property
    def _whole(self) -> NDArray[np.float64]:
        return self.units if self.units is self.members else self.units + self.members
