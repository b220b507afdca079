"""Loads a model of transformers onto one device, or cuts it into runs of layers on several. The steps of a cut:

1. Build the model without memory for its parameters, to learn the names of its modules (`_skeleton`).
2. Give each layer, and all before and after the layers, a device by the bytes of its tensors (`placement.spread`).
3. Name the device of every module (`device_map`), and load or allocate each parameter there.
4. accelerate moves the activations between devices (`dispatch_model`).
"""

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
    """How a model is cut between devices.

    Attributes:
        sizes: the bytes of its tensors, by their names in the checkpoint.
        stack: its layer stack in the checkpoint.
        room: the devices, and the bytes that each has free.
    """

    sizes: Mapping[str, int]
    stack: Stack
    room: Mapping[str, int]

    @property
    def single(self) -> str | None:
        """The device, if there is only one."""
        return next(iter(self.room)) if len(self.room) == 1 else None

    def blocks(self) -> dict[Place, str]:
        """The device of each place in the model."""
        return spread(self.sizes, self.stack, self.room)


def load(folder: Path, dtype: torch.dtype, sharding: Sharding) -> PreTrainedModel:
    """The checkpoint's language model, loaded straight onto its devices. Where transformers cannot run a model with
    towers on text, its language part alone: the other tensors are not read."""
    from transformers import AutoConfig

    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    config = AutoConfig.from_pretrained(folder, **options)
    if sharding.single is not None:
        devices: dict[str, str] = {"": sharding.single}
    else:
        devices = device_map(_skeleton(config, dtype), sharding)
    whole, *parts = _kinds(config)
    model: PreTrainedModel = _auto(whole).from_pretrained(folder, dtype=dtype, device_map=devices, **options)
    if parts and not _runs(model):
        model = _auto(parts[0]).from_pretrained(folder, dtype=dtype, device_map=devices, **options)
    return model


def build(
    config: Mapping[str, Any], dtype: torch.dtype, sharding: Sharding, like: PreTrainedModel | None = None
) -> PreTrainedModel:
    """The language model of a configuration, on its devices; its parameters are not set. `like`: a model of the kind
    that it shall be, where there are several."""
    from accelerate import dispatch_model  # type: ignore[import-untyped]
    from transformers import AutoConfig

    model = _skeleton(AutoConfig.for_model(**_settings(config)), dtype, like)
    if sharding.single is not None:
        _allocate(model, {"": sharding.single})
        return model.to(sharding.single)
    devices = device_map(model, sharding)
    _allocate(model, devices)
    return dispatch_model(model, device_map=devices)


def without_memory(
    config: Mapping[str, Any], dtype: torch.dtype, device: str, like: PreTrainedModel | None = None
) -> PreTrainedModel:
    """The language model of a configuration, whose parameters take no memory; its buffers are on the device. `like`:
    see `build`."""
    from transformers import AutoConfig

    model = _skeleton(AutoConfig.for_model(**_settings(config)), dtype, like)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return model


def skeleton(config: Mapping[str, Any]) -> PreTrainedModel:
    """The language model of a configuration, without memory for its parameters and buffers."""
    from transformers import AutoConfig

    with torch.device("meta"):
        return _skeleton(AutoConfig.for_model(**_settings(config)), torch.float32)


def _auto(kind: str) -> Any:
    import transformers

    return getattr(transformers, kind)


@torch.no_grad()
def _runs(model: PreTrainedModel) -> bool:
    """Whether transformers can run a model on text alone: some classes of some versions cannot."""
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    try:
        model.eval()(input_ids=tokens)
    except Exception:
        return False
    return True


def _kinds(config: Any) -> list[str]:
    """The Auto classes that make a configuration's model. First the one of the class that the configuration names: a
    vision-language model as a whole, with its tower. Then that of its language part alone, if that is another."""
    from transformers.models.auto import modeling_auto

    kind, named = config.model_type, (config.architectures or [""])[0]
    classes = {
        name: getattr(modeling_auto, mapping, {}).get(kind)
        for name, mapping in (
            ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
            ("AutoModelForImageTextToText", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"),
            ("AutoModelForMultimodalLM", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"),
        )
    }
    able = [name for name, of_kind in classes.items() if of_kind is not None] or ["AutoModelForCausalLM"]
    first = next((name for name in able if classes[name] == named), able[0])
    alone = able[0] != first and classes[able[0]] != classes[first]
    return [first, able[0]] if alone else [first]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}


def device_map(model: PreTrainedModel, sharding: Sharding) -> dict[str, str]:
    """The device of every layer, and of every other module that has a parameter or a buffer, by its name in the model.
    A head that shares the embeddings' parameter is on the embeddings' device.

    Raises:
        InputError: the model's names show no layer stack.
    """
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    stack = find_stack(tensors, sharding.stack.layers)
    if stack is None:
        problem = f"{type(model).__name__} has no numbered stack of {sharding.stack.layers} layers"
        raise InputError(problem, "it cannot be cut between devices: give one --device")
    blocks, devices, shared = sharding.blocks(), dict[str, str](), dict[int, str]()
    for name, tensor in tensors.items():
        place = stack.place(name)
        module = f"{stack.prefix}.{place}" if isinstance(place, int) else name.rpartition(".")[0]
        devices.setdefault(module, shared.setdefault(id(tensor), blocks[place]))
    return devices


def _skeleton(config: Any, dtype: torch.dtype, like: PreTrainedModel | None = None) -> PreTrainedModel:
    """The model with parameters that take no memory; its buffers are real. `like`: see `build`."""
    from accelerate import init_empty_weights

    for kind in _kinds(config):
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = _auto(kind).from_config(config, dtype=dtype, trust_remote_code=False)
        if like is None or type(model) is type(like):
            break
    model.tie_weights()  # under init_empty_weights, tying made separate parameters
    return model


def _allocate(model: PreTrainedModel, devices: Mapping[str, str]) -> None:
    """Give every parameter memory on its device. Parameters that modules share stay shared."""
    allocated: dict[int, torch.nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in allocated:
                home = next(d for m, d in devices.items() if not m or f"{path}.".startswith(f"{m}."))
                memory = torch.empty_like(parameter, device=home)
                allocated[id(parameter)] = torch.nn.Parameter(memory, requires_grad=False)
            setattr(module, name, allocated[id(parameter)])
