"""Activation matching: the permutations of one model whose units do most alike what another's do on the same inputs.

Li et al. 2015 (arXiv:1511.07543) and Git Re-Basin (arXiv:2209.04836), section 3.1: a linear assignment of each group by
the correlation of its units. What follows a group on its way into a layer is recorded: the inputs of the modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from evomerge.merging.permutation.symmetries import Symmetries
from evomerge.merging.permutation.weight_matching import Matching, weight_matching
from evomerge.merging.permutation.weights import Likeness, Orders, Weights

Records = dict[tuple[str, int], Tensor]
"""(Tensor, axis that its module reads by) -> what the module was given [places, entries of that axis]."""

_PLACES = 4096
"""Tokens, images or pixels that are kept of each input."""
_EPSILON = 1e-8


class Recorder:
    """Keeps what the modules of a model are given. `keys`: tensor -> its name in the model, where that is another."""

    def __init__(
        self, symmetries: Symmetries, model: torch.nn.Module, keys: Mapping[str, str] | None = None,
        places: int = _PLACES,
    ) -> None:  # fmt: skip
        self._parts: dict[tuple[str, int], list[Tensor]] = {}
        self._places, self._model = places, model
        self._modules = dict(_readers(symmetries, model, keys or {}))
        self._mask: Tensor | None = None

    @contextmanager
    def listening(self, mask: Tensor | None = None) -> Iterator[None]:
        """A context in which forward passes are recorded. `mask` [rows, places]: the tokens that count."""
        self._mask = mask
        handles = [m.register_forward_pre_hook(self._hook(reads, axis)) for reads, (m, axis) in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def records(self) -> Records:
        """What was kept, of the modules that were given anything."""
        return {reads: torch.cat(parts)[: self._places] for reads, parts in self._parts.items() if parts}

    def _hook(self, reads: tuple[str, int], axis: int) -> Callable[[Any, tuple[Any, ...]], None]:
        def keep(_: Any, inputs: tuple[Any, ...]) -> None:
            parts = self._parts.setdefault(reads, [])
            if not inputs or sum(map(len, parts)) >= self._places:
                return
            given: Tensor = inputs[0].detach().movedim(axis, -1)
            if self._mask is not None and given.shape[:-1] == self._mask.shape:
                given = given[self._mask.to(given.device)]
            parts.append(given.reshape(-1, given.shape[-1]).float().cpu())

        return keep


def _readers(
    symmetries: Symmetries, model: torch.nn.Module, keys: Mapping[str, str]
) -> Iterator[tuple[tuple[str, int], tuple[torch.nn.Module, int]]]:
    """The tensors whose modules read by a group, and by which axis: the module, and the axis of its input."""
    modules = dict(model.named_modules())
    taken = set[tuple[str, str]]()
    for name, axes in symmetries.axes.items():
        path, _, part = keys.get(name, name).rpartition(".")
        module = modules.get(path)
        if part != "weight" or module is None or len(axes) < 2:
            continue
        turned = type(module).__name__ == "Conv1D"  # of transformers: [in, out]
        convolution = isinstance(module, torch.nn.modules.conv._ConvNd)
        if not (turned or convolution or isinstance(module, torch.nn.Linear)):
            continue
        reads = 0 if turned else 1
        parts = axes[reads]
        # Projections side by side read the same: one of them is enough.
        place = (path.rpartition(".")[0], ",".join(p.group for p in parts))
        if parts and (convolution or place not in taken or not place[0]):
            taken.add(place)
            yield (name, reads), (module, 1 if convolution else -1)


def record(
    symmetries: Symmetries, model: torch.nn.Module, batches: Any, places: int = _PLACES,
    forward: Callable[[torch.nn.Module, Any], Any] | None = None,
) -> Records:  # fmt: skip
    """Runs a model over batches and keeps what its modules are given. `forward(model, batch)` runs a batch; default:
    `model(batch)`."""
    recorder = Recorder(symmetries, model, places=places)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), recorder.listening():
            for batch in batches:
                model(batch) if forward is None else forward(model, batch)
    finally:
        model.train(training)
    return recorder.records


def activation_matching(
    symmetries: Symmetries, one: Records, other: Records, weights: tuple[Weights, Weights] | None = None, seed: int = 0
) -> Matching:
    """The permutations of a model whose units correlate most with another's.

    Args:
        symmetries: of both models.
        one, other: what the modules of both were given, on the same inputs (`record`).
        weights: of both; groups of which nothing was recorded are matched by them, the others held. Without them such
            groups stay as they are.
        seed: as for `weight_matching`.
    """
    orders: Orders = {}
    total = 0.0
    for name, group in symmetries.groups.items():
        likeness, seen = Likeness.none(group), False
        for reads in symmetries.uses(name):
            # Experts of a mixture may be given other tokens by either model: no place of one is a place of the other.
            if reads in one and reads in other and one[reads].shape == other[reads].shape and len(one[reads]) > 1:
                rows = [_standardized(records[reads]).T for records in (one, other)]
                likeness.add(rows[0], rows[1], symmetries.axes[reads[0]][reads[1]], name)
                seen = True
        if seen:
            orders[name] = likeness.best(group)
            total += likeness.value(group, orders[name])
    if weights is not None and len(orders) < len(symmetries.groups):
        left = [name for name in symmetries.groups if name not in orders]
        orders = weight_matching(symmetries, *weights, seed=seed, start=orders, groups=left).orders
    return Matching({**symmetries.identity(), **orders}, 1, total)


def _standardized(records: Tensor) -> Tensor:
    """Each entry with mean 0 and norm 1 over all places, so that inner products are correlations."""
    centred = records.double() - records.double().mean(0)
    scaled: Tensor = centred / centred.norm(dim=0).clamp_min(_EPSILON)
    return scaled
