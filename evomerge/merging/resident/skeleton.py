"""A model of transformers whose parameters are given to it: built from a configuration, without memory of its own.

Candidates of other depths are other skeletons over the same memory. What a parameter is may change with each candidate:
memory of the resident model that is written to, or a tensor of a source that the layer is linked to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evomerge.checkpoints.layouts.layout import Layout, Slot, layout
from evomerge.checkpoints.structure import find_stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Make = Callable[[], Tensor]
"""Makes a parameter's tensor."""


@dataclass(frozen=True)
class Home:
    """A parameter of the model.

    Attributes:
        spots: the modules that have it, each with its name there. Modules that share it are tied.
        layer: the number of the layer that it is part of; None: it is outside of the layers.
    """

    spots: tuple[tuple[nn.Module, str], ...]
    layer: int | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def parameter(self) -> nn.Parameter:
        """What it is now."""
        module, name = self.spots[0]
        parameter = module._parameters[name]
        assert parameter is not None
        return parameter

    def put(self, parameter: nn.Parameter) -> None:
        """Makes it another parameter, in all modules that have it."""
        for module, name in self.spots:
            module._parameters[name] = parameter

    def give(self, tensor: Tensor) -> None:
        """Gives it a tensor, which is not copied."""
        if self.parameter.data_ptr() != tensor.data_ptr() or self.parameter.device != tensor.device:
            self.put(nn.Parameter(tensor, requires_grad=False))


class Skeleton:
    """A model, the homes of its parameters, and the place of each stored tensor in them.

    Attributes:
        model: the model; its parameters are on the meta device until they are given.
        homes: its parameters, each once.
        layers: the modules of its layer stack.
    """

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        """`layers`: how many it has."""
        self.model = model
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        stack = find_stack(dict.fromkeys(names), layers)
        self.layers = [] if stack is None else [model.get_submodule(f"{stack.prefix}.{i}") for i in range(stack.layers)]
        spots: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            spots.setdefault(id(parameter), []).append(name)
        self.homes: list[Home] = []
        self._number: dict[int, int] = {}  # of each home, by the id of the parameter that the layouts are of
        self._first: list[nn.Parameter] = []  # these parameters
        for at, (key, paths) in enumerate(spots.items()):
            owners = [(model.get_submodule(p.rpartition(".")[0]), p.rpartition(".")[2]) for p in paths]
            parameter = model.get_parameter(paths[0])
            place = None if stack is None else stack.place(paths[0])
            number = place if isinstance(place, int) else None
            self.homes.append(Home(tuple(owners), number, tuple(parameter.shape), parameter.dtype))
            self._number[key] = at
            self._first.append(parameter)
        self._layouts: dict[frozenset[str], Layout] = {}
        self._lent: list[torch.utils.hooks.RemovableHandle] = []

    def layout(self, shapes: Mapping[str, Sequence[int]], check: Callable[[Layout], None]) -> Layout:
        """Where stored tensors of these names and shapes are in the model as it was built. It is found once (of a
        checkpoint with thousands of experts it takes seconds), and then checked."""
        key = frozenset(shapes)
        if key not in self._layouts:
            now = [home.parameter for home in self.homes]
            for home, first in zip(self.homes, self._first, strict=True):
                home.put(first)
            try:
                place = layout(self.model, shapes)
                check(place)
            finally:
                for home, parameter in zip(self.homes, now, strict=True):
                    home.put(parameter)
            self._layouts[key] = place
        return self._layouts[key]

    def stored_in(self, place: Layout) -> list[list[str]]:
        """The names of the stored tensors that each home consists of."""
        names: list[list[str]] = [[] for _ in self.homes]
        for name, slot in place.slots.items():
            if id(slot.home) in self._number:
                names[self._number[id(slot.home)]].append(name)
        return names

    def slots(self, place: Layout) -> dict[str, Slot]:
        """The places of stored tensors in the parameters as they are now."""
        return {name: self._slot(slot) for name, slot in place.slots.items()}

    def _slot(self, slot: Slot) -> Slot:
        number = self._number.get(id(slot.home))
        if number is None:  # a buffer
            return slot
        now = self.homes[number].parameter
        if now.untyped_storage().nbytes() < now.nbytes:  # lent: there is no memory to look at
            return Slot(now.detach()[(0,) * now.dim()].expand(slot.tensor.size()), now)
        return Slot(now if slot.tensor is slot.home else view_of(now.detach(), slot), now)

    def lend(self, made: Mapping[int, Sequence[tuple[Home, Make]]]) -> None:
        """Makes parameters of layers each time that the layer runs, and drops them when it has run. `made`: what is
        made in each layer, by its number; this replaces what was lent before."""
        for handle in self._lent:
            handle.remove()
        self._lent = []
        for number, parts in made.items():
            loan, layer = _Loan(parts), self.layers[number]
            self._lent.append(layer.register_forward_pre_hook(loan.begin))
            self._lent.append(layer.register_forward_hook(loan.end, always_call=True))


class _Loan:
    """Parameters that a layer has while it runs."""

    def __init__(self, parts: Sequence[tuple[Home, Make]]) -> None:
        self._parts = parts
        self._before: list[nn.Parameter] = []

    def begin(self, *_: Any) -> None:
        """Makes them."""
        self._before = [home.parameter for home, _ in self._parts]
        for home, make in self._parts:
            home.put(nn.Parameter(make(), requires_grad=False))

    def end(self, *__: Any) -> None:
        """Drops them."""
        for (home, _), parameter in zip(self._parts, self._before, strict=False):
            home.put(parameter)
        self._before = []


def view_of(tensor: Tensor, slot: Slot) -> Tensor:
    """The part of a tensor, shaped as the slot's home is, that is the slot's."""
    offset = slot.tensor.storage_offset() - slot.home.storage_offset()
    return tensor.as_strided(slot.tensor.size(), slot.tensor.stride(), tensor.storage_offset() + offset)


class Memory:
    """Memory for the parameters of one model at a time. It is taken by shape, and all of it is there again for the next
    model; it is not given back to the device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._all: dict[tuple[tuple[int, ...], torch.dtype], list[Tensor]] = {}
        self._taken: dict[tuple[tuple[int, ...], torch.dtype], int] = {}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Adds memory that is there already."""
        for tensor in tensors:
            self._all.setdefault((tuple(tensor.shape), tensor.dtype), []).append(tensor)

    def free(self) -> None:
        """From here on all of it can be taken again."""
        self._taken = {}

    def has(self, home: Home) -> bool:
        """Whether memory of the home's shape and dtype is there that is not taken."""
        key = home.shape, home.dtype
        return self._taken.get(key, 0) < len(self._all.get(key, ()))

    def grown(self, home: Home) -> Tensor:
        """Takes memory of the home's shape and dtype; where there is none, it is allocated."""
        key = home.shape, home.dtype
        if not self.has(home):
            self._all.setdefault(key, []).append(torch.empty(home.shape, dtype=home.dtype, device=self._device))
        taken = self._taken[key] = self._taken.get(key, 0) + 1
        return self._all[key][taken - 1]
