"""Restores a model after a user's function has run, and notices changed weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.errors import TrialError
from evomerge.merging.resident.built import BuiltModel

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""Where a module keeps its hooks."""


@contextmanager
def untouched(model: Any, name: str) -> Iterator[None]:
    """Restores modes, gradients, hooks, modules and parameters at the end.

    Args:
        model: a module or a `BuiltModel`; anything else is ignored.
        name: the function's name.

    Raises:
        TrialError: the weights changed; it names a tensor.
    """
    parts: list[_Weights | _Structure] = [_Weights(key, tensor) for key, tensor in _tensors(model).items()]
    parts += map(_Structure, _modules(model))
    try:
        yield
    finally:
        changed = [part.name for part in parts if not part.put_back()]
    if changed:
        raise TrialError(f"{name} changed the model's weights ({changed[0]})")


class _Weights:
    """One tensor as it is now."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self._tensor, self._data = name, tensor, tensor.data
        self._grad = tensor.requires_grad
        self._state = self._look()

    def put_back(self) -> bool:
        """Gives the tensor its memory back. Returns whether its elements are the same."""
        tensor = self._tensor
        if _memory(tensor) != _memory(self._data):
            tensor.data = self._data
            return False
        if tensor.requires_grad != self._grad:
            tensor.requires_grad_(self._grad)
        tensor.grad = None
        return self._look() == self._state

    def _look(self) -> tuple[int, int]:
        version = 0 if self._tensor.is_inference() else self._tensor._version
        return version, _sum_of_bits(self._tensor.detach())


class _Structure:
    """One module's mode, hooks, parameters and modules as they are now."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._training = module, module.training
        self._members: list[dict[str, Any]] = [module._parameters, module._modules]
        self._copies = [dict(members) for members in self._members]
        self._hooks = {name: dict(getattr(module, name)) for name in _HOOKS}

    @property
    def name(self) -> str:
        return type(self._module).__name__

    def put_back(self) -> bool:
        """Gives the module back what it had. Returns whether it still had the same parameters and modules."""
        self._module.training = self._training
        for name, then in self._hooks.items():
            now = getattr(self._module, name)
            now.clear()
            now.update(then)
        same = True
        for now, then in zip(self._members, self._copies, strict=True):
            if now.keys() != then.keys() or any(now[key] is not then[key] for key in then):
                now.clear()
                now.update(then)
                same = False
        return same


def _sum_of_bits(tensor: Tensor) -> int:
    """Adds up the tensor's memory as whole numbers, as fast as it can be read. It shows what version counters do not:
    writes through `.data` or numpy, and the running statistics of a model in training mode."""
    memory = tensor.contiguous().view(-1).view(torch.uint8)
    if memory.storage_offset() % 8:
        memory = memory.clone()
    whole = memory.numel() // 8 * 8
    return int(memory[:whole].view(torch.int64).sum()) + int(memory[whole:].sum())


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.device


def _modules(model: Any) -> list[nn.Module]:
    module = model.model if isinstance(model, BuiltModel) else model
    return list(module.modules()) if isinstance(module, nn.Module) else []


def _tensors(model: Any) -> dict[str, Tensor]:
    """The tensors that a checkpoint would store. Other buffers may change as the model runs."""
    if isinstance(model, BuiltModel):
        return {**model.state, **_tensors(model.model)}
    return dict(model.state_dict(keep_vars=True)) if isinstance(model, nn.Module) else {}
