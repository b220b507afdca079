"""Puts the model right after a user's function has run, and tells what the function had changed.

A scorer is a user's own code in this process, and gets the model itself. What it switches for its own run (training
mode, gradients, hooks, the cache) is switched back without a word. Anything else that it changes would change the
scores of other slices and candidates: it is put back, too, and fails the trial, so that it is not mistaken for
something that lasts.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from evomerge.errors import LostModelError, TrialError
from evomerge.escape import shortened
from evomerge.merging.resident.built import BuiltModel
from evomerge.scoring.python.attributes import Attributes
from evomerge.scoring.settings import settings_kept, surroundings_kept

_MEMBERS = ("_parameters", "_buffers", "_modules")
"""Where a module keeps its tensors and modules."""

_SWITCHES = (
    "use_cache",
    "pad_token_id",
    "output_attentions",
    "_output_attentions",
    "output_hidden_states",
    "return_dict",
    "_attn_implementation_internal",
)
"""What scorers set in a configuration for their own run: how they call the model, and what it returns to them."""

_HOOKS = tuple(name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("_hooks"))
"""Where torch keeps the hooks of all modules."""


@contextmanager
def untouched(model: Any, name: str) -> Iterator[None]:
    """Puts back at the end what code may have changed: tensors, modules, attributes and methods of the model, its
    configurations, the functions that it calls, torch's settings, and what `surroundings_kept` names.

    Args:
        model: a module or a `BuiltModel`; of anything else only the surroundings are put back.
        name: the function's name.

    Raises:
        TrialError: something changed that no scorer switches for its own run; it says what, before -> after.
        LostModelError: the model cannot be put right.
    """
    modules = _modules(model)
    parts: list[_Weights | _Object | _Functions] = [_Weights(key, tensor) for key, tensor in _tensors(model).items()]
    parts += map(_Object, [*modules, *_configs(modules)])
    classes = {kind for module in modules for kind in type(module).__mro__ if issubclass(kind, nn.Module)}
    files = {sys.modules[kind.__module__] for kind in classes if kind.__module__ in sys.modules}
    owners: set[type | ModuleType] = {*classes, *files, torch, torch.Tensor, nn.functional}
    parts += map(_Functions, owners)
    caches = [(buffer, buffer.clone()) for buffer in _caches(modules)]
    hooks = {hook: dict(getattr(torch_module, hook)) for hook in _HOOKS}
    changed: list[str] = []
    try:
        with surroundings_kept(), settings_kept() as settings:
            yield
    finally:
        try:
            changed += [line for part in parts for line in part.put_back()]
            for buffer, then in caches:
                buffer.data.copy_(then)
            for hook, registered in hooks.items():
                getattr(torch_module, hook).clear()
                getattr(torch_module, hook).update(registered)
        except Exception as error:
            reason = shortened(f"{type(error).__name__}: {error}")
            raise LostModelError(f"{name} left the model so that it cannot be put right ({reason}); mend it") from error
    if changed or settings:
        raise TrialError(f"{name} changed {[*changed, *settings][0]}")


class FreshTokenizer:
    """A tokenizer that each call gets as it was at first, whatever the last one did to it. It is copied anew only
    where it was changed, as a large vocabulary takes a moment."""

    def __init__(self, tokenizer: Any) -> None:
        self._original = copy.deepcopy(tokenizer)
        self._renew()

    def get(self) -> Any:
        if self._copy is not None and (self._attributes.changed() or self._backend_state() != self._state):
            self._renew()
        return self._copy

    def _renew(self) -> None:
        self._copy = copy.deepcopy(self._original)
        if self._copy is not None:
            self._attributes, self._state = Attributes(self._copy), self._backend_state()

    def _backend_state(self) -> tuple[Any, ...]:
        backend = getattr(self._copy, "backend_tokenizer", None)
        settings = (backend.truncation, backend.padding) if backend is not None else ()
        return len(self._copy), *settings


class _Weights:
    """One tensor as it is now."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self._name, self._tensor, self._data = name, tensor, tensor.data
        self._bytes = tensor.untyped_storage().nbytes()
        self._grad = tensor.requires_grad
        self._state = self._look()

    def put_back(self) -> list[str]:
        """Gives the tensor its memory back. Returns a line where its elements are not the same; the next candidate is
        written over them."""
        tensor = self._tensor
        moved = _memory(tensor) != _memory(self._data)
        if moved:
            tensor.data = self._data
        if tensor.untyped_storage().nbytes() != self._bytes:
            raise RuntimeError(f"the memory of {self._name} was freed")
        if tensor.requires_grad != self._grad:
            tensor.requires_grad_(self._grad)
        tensor.grad = None
        return [f"the model's weights ({self._name})"] if moved or self._look() != self._state else []

    def _look(self) -> tuple[int, int]:
        version = 0 if self._tensor.is_inference() else self._tensor._version
        return version, _sum_of_bits(self._tensor.detach())


class _Object:
    """The attributes of a module or a configuration as they are now."""

    def __init__(self, owner: Any) -> None:
        self._owner, self._attributes = owner, Attributes(owner)

    def put_back(self) -> list[str]:
        """Gives the object back what it had. Returns a line for each change that no scorer makes for its own run."""
        lines = []
        for key in self._attributes.changed():
            if not self._is_switch(key):
                lines.append(self._line(key))
            self._attributes.put_back(key)
        return lines

    def _is_switch(self, key: str) -> bool:
        """Whether a scorer may change the attribute for its own run, or the model changes it as it runs."""
        owner = self._owner
        if not isinstance(owner, nn.Module):
            return key in _SWITCHES
        if "inv_freq" in owner._buffers:
            return True  # a rotary embedding, which computes itself anew for longer texts
        if key in _MEMBERS:
            return False
        if key == "training" or "_hook" in key:
            return True
        # What is left are notes: those that a library adds, and those that a model of the user's own takes.
        library = type(owner).__module__.partition(".")[0] in ("torch", "transformers")
        noted = (key.startswith("_") and self._attributes.is_new(key)) if library else True
        return noted and not any(map(callable, self._attributes.values(key)))

    def _line(self, key: str) -> str:
        kind = type(self._owner).__name__
        if key in _MEMBERS:
            return f"the model's weights ({kind})"
        if not isinstance(self._owner, nn.Module):
            kind = "model.generation_config" if kind == "GenerationConfig" else "model.config"
        return f"{kind}.{key} ({self._attributes.difference(key)})"


class _Functions:
    """The methods of a class, or the functions and classes of a Python module, as they are now."""

    def __init__(self, owner: type | ModuleType) -> None:
        self._owner = owner
        self._functions = {name: value for name, value in vars(owner).items() if callable(value)}

    def put_back(self) -> list[str]:
        """Gives the owner back what it had. Returns a line for each that was another. A new one counts in a class only,
        where it hides a base's: a module gets new ones as it imports."""
        now = vars(self._owner)
        changed = [name for name, function in self._functions.items() if now.get(name) is not function]
        for name in changed:
            setattr(self._owner, name, self._functions[name])
        kind = "function"
        if isinstance(self._owner, type):
            kind = "method"
            new = [name for name, value in now.items() if callable(value) and name not in self._functions]
            for name in new:
                delattr(self._owner, name)
            changed += new
        return [f"{self._owner.__name__}.{name}, a {kind}" for name in changed]


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
    """The tensors that a checkpoint would store."""
    if isinstance(model, BuiltModel):
        return {**model.state, **_tensors(model.model)}
    return dict(model.state_dict(keep_vars=True)) if isinstance(model, nn.Module) else {}


def _configs(modules: Sequence[nn.Module]) -> list[Any]:
    """The configurations that the modules go by, with those inside of them."""
    found = {
        id(c): c for module in modules for key, c in vars(module).items() if key in ("config", "generation_config")
    }
    queue = list(found.values())
    while queue:
        inner = [value for value in vars(queue.pop()).values() if hasattr(value, "to_diff_dict")]
        queue += [value for value in inner if id(value) not in found]
        found.update((id(value), value) for value in inner)
    return [config for config in found.values() if hasattr(config, "__dict__")]


def _caches(modules: Sequence[nn.Module]) -> list[Tensor]:
    """The buffers that no checkpoint stores. The model itself may change them as it runs."""
    return [
        buffer
        for module in modules
        for name in module._non_persistent_buffers_set
        if (buffer := module._buffers.get(name)) is not None
    ]
