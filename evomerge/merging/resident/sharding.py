"""A model of transformers on one device, or cut into runs of layers that lie on several (accelerate's dispatch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evomerge.checkpoints.structure import Place, Stack, find_stack
from evomerge.errors import InputError
from evomerge.merging.resident.placement import spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sharding:
    """How a model is cut: the bytes of its tensors by the names of its checkpoint, its layer stack there, and the
    devices with their room."""

    sizes: Mapping[str, int]
    stack: Stack
    room: Mapping[str, int]

    @property
    def single(self) -> str | None:
        """The device, where it is one."""
        return next(iter(self.room)) if len(self.room) == 1 else None

    def blocks(self) -> dict[Place, str]:
        return spread(self.sizes, self.stack, self.room)


def load(folder: Path, dtype: torch.dtype, sharding: Sharding) -> PreTrainedModel:
    """The checkpoint's causal language model, loaded straight onto its devices."""
    from transformers import AutoConfig, AutoModelForCausalLM

    told: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if sharding.single is not None:
        devices: dict[str, str] = {"": sharding.single}
    else:
        devices = device_map(_skeleton(AutoConfig.from_pretrained(folder, **told), dtype), sharding)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=devices, **told)


def build(config: Mapping[str, Any], dtype: torch.dtype, sharding: Sharding) -> PreTrainedModel:
    """The causal language model of a configuration, on its devices; its parameters hold anything."""
    from accelerate import dispatch_model  # type: ignore[import-untyped]
    from transformers import AutoConfig

    told = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    model = _skeleton(AutoConfig.for_model(**told), dtype)
    if sharding.single is not None:
        _allocate(model, {"": sharding.single})
        return model.to(sharding.single)
    devices = device_map(model, sharding)
    _allocate(model, devices)
    return dispatch_model(model, device_map=devices)


def device_map(model: PreTrainedModel, sharding: Sharding) -> dict[str, str]:
    """The device of every layer, and of every other module that has a parameter or a buffer, by its name in the model.
    A head that shares the embeddings' parameter lies where these do.

    Raises:
        InputError: the model's layers cannot be told from its names.
    """
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    stack = find_stack(tensors, sharding.stack.layers)
    if stack is None:
        problem = f"{type(model).__name__} has no numbered stack of {sharding.stack.layers} layers"
        raise InputError(problem, "it cannot be cut between devices: give one --device")
    blocks, found, first = sharding.blocks(), dict[str, str](), dict[int, str]()
    for name, tensor in tensors.items():
        place = stack.place(name)
        module = f"{stack.prefix}.{place}" if isinstance(place, int) else name.rpartition(".")[0]
        found.setdefault(module, first.setdefault(id(tensor), blocks[place]))
    return found


def _skeleton(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model with parameters that take no memory; its buffers are real."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()  # in there, sharing a parameter made another one
    return model


def _allocate(model: PreTrainedModel, devices: Mapping[str, str]) -> None:
    """Give every parameter memory on its device; those that modules share stay shared."""
    made: dict[int, torch.nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                home = next(d for m, d in devices.items() if not m or f"{path}.".startswith(f"{m}."))
                memory = torch.empty_like(parameter, device=home)
                made[id(parameter)] = torch.nn.Parameter(memory, requires_grad=False)
            setattr(module, name, made[id(parameter)])
