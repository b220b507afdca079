"""The straight-through estimator: permutations learned by the loss half-way between two models.

Git Re-Basin (Ainsworth et al. 2022, arXiv:2209.04836), algorithm 3. A copy of the first model's weights is trained. In
the forward pass it stands for the second model, permuted to match it; the gradient is taken as if it were that model.
For small networks: every step is a weight matching and a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.merging.permutation.symmetries import Symmetries
from evomerge.merging.permutation.weight_matching import Matching, weight_matching
from evomerge.merging.permutation.weights import Weights, counts, permuted_weights

if TYPE_CHECKING:
    from evomerge.merging.permutation.symmetries import Order

Loss = Callable[[dict[str, Tensor]], Tensor]
"""The loss of a model with these tensors, on the next batch; it must be differentiable."""


@dataclass(frozen=True)
class LearnedMatching:
    """Permutations, and the losses half-way: of each step, on its batch."""

    matching: Matching
    losses: tuple[float, ...]


def straight_through(
    symmetries: Symmetries,
    one: Weights,
    other: Weights,
    loss: Loss,
    *,
    steps: int = 100,
    rate: float = 1e-3,
    seed: int = 0,
    start: Mapping[str, Order] | None = None,
) -> LearnedMatching:
    """The permutations of `other` that had the least loss half-way to `one`.

    Args:
        symmetries: of both models.
        one, other: their tensors, by name.
        loss: of a model in between. Losses of steps are compared: give it batches that are large, or the same.
        steps: how many gradients are taken.
        rate: the learning rate (Adam).
        seed: of the orders in which weight matching visits the groups.
        start: the permutations to begin with; default: those of weight matching.
    """
    names = [name for name, tensor in one.items() if counts(name, tensor)]
    learned = {name: one[name].detach().clone().float().requires_grad_() for name in names}
    optimizer = torch.optim.Adam(learned.values(), lr=rate)
    orders = start
    best: tuple[float, Matching] | None = None
    losses = []
    for _ in range(max(1, steps)):
        # 1. Project: the permutations that bring `other` nearest to what is learned.
        current = {**one, **{name: tensor.detach() for name, tensor in learned.items()}}
        matching = weight_matching(symmetries, current, other, seed=seed, start=orders)
        orders = matching.orders
        # 2. Half-way between `one` and the permuted `other`, whose place `learned` takes for the gradient alone.
        moved = permuted_weights(symmetries, other, orders)
        middle = {name: (one[name] + moved[name]) / 2 if tensor.is_floating_point() else tensor
                  for name, tensor in one.items()}  # fmt: skip
        for name in names:
            through = learned[name] + (moved[name].float() - learned[name]).detach()
            middle[name] = (one[name].float() + through) / 2
        value = loss(middle)
        losses.append(float(value))
        if best is None or losses[-1] < best[0]:
            best = losses[-1], matching
        # 3. Step.
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert best is not None
    return LearnedMatching(best[1], tuple(losses))
