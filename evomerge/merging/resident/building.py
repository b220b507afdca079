"""Builds models of transformers, and checks from headers alone that they can be built: what is wrong is one line."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import GENERATION_FILE, Checkpoint
from evomerge.checkpoints.layouts.layout import Slot, layout
from evomerge.errors import EvomergeError, InputError, Where
from evomerge.escape import shortened
from evomerge.merging.plan.jobs import MergePlan
from evomerge.merging.resident.bank import torch_dtype
from evomerge.merging.resident.sharding import Sharding, build, load, skeleton
from evomerge.safety.limits import OutOfTime, TimeLimit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHOWN = 4
_NO_MODEL = "check its config.json; for other models, let `model` of the fitness file build it"
_SKELETON_SECONDS = 120.0
"""A model of 100,000 modules takes some 20 s. A configuration can ask for a million."""
# Settings that change neither the parameters nor a forward pass
_INERT = ("dtype", "torch_dtype", "_name_or_path", "transformers_version", "architectures", "use_cache",
          "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip


def check_buildable(base: Checkpoint, planned: MergePlan) -> None:
    """Checks, before a weight is read, that transformers can build the merged model and load the base. Takes no memory
    for parameters.

    Raises:
        InputError: it cannot, or the model's parameters have other names or shapes than the checkpoints' tensors.
    """
    from transformers import GenerationConfig

    check_kind(base)
    if (base.path / GENERATION_FILE).is_file():
        with quiet(f"{base.path / GENERATION_FILE} is not valid", "correct it, or remove it"):
            GenerationConfig.from_pretrained(base.path, local_files_only=True)
    with quiet(f"{base.path} cannot be loaded as a causal language model", _NO_MODEL), TimeLimit(_SKELETON_SECONDS):
        model = skeleton(planned.config)
        place = layout(model, planned.shapes)
    check_names(base.path, place.slots, [name for name in planned.jobs if name not in place.unread])
    check_filled(base.path, model, place.slots)
    for name, slot in place.slots.items():
        job, shape = planned.jobs[name], list(slot.tensor.shape)
        if tuple(shape) != job.shape:
            problem = f"{base.path}: {name} is {list(job.shape)}, and {shape} by its config.json"
            raise InputError(problem, "correct config.json, or download the checkpoint again")


def check_names(path: Path, slots: Mapping[str, Slot], names: list[str]) -> None:
    unknown = [name for name in names if name not in slots]
    if unknown:
        problem = f"{path}: the model has no parameter for {_listed(unknown)}"
        mend = (
            "it can be merged to disk, but not in memory: transformers lays its parameters out otherwise than its files"
        )
        raise InputError(problem, mend)
    if len(names) < len(slots):
        missing = [name for name in slots if name not in set(names)]
        raise InputError(f"{path}: the recipe makes no {_listed(missing)}", "merge models of one architecture")


def check_filled(path: Path, model: PreTrainedModel, slots: Mapping[str, Slot]) -> None:
    """InputError where a part of the model has no stored tensor."""

    def memory(tensor: Tensor) -> int:
        return tensor.data_ptr() or id(tensor)  # without memory, on the meta device, shared parameters are one object

    filled = Counter[int]()
    for (home, _), numel in {
        (memory(s.home), s.tensor.storage_offset()): s.tensor.numel() for s in slots.values()
    }.items():
        filled[home] += numel
    state = model.state_dict(keep_vars=True)
    idle = [name for name, tensor in state.items() if filled[memory(tensor)] < tensor.numel()]
    if idle:
        problem = f"{path} stores no {_listed(idle)}, which the model has"
        raise InputError(problem, "save the checkpoint again with this version of transformers")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def structure(config: Mapping[str, Any]) -> str:
    """The settings of a configuration that decide the model, with defaults filled in, as JSON."""
    return _structure(json.dumps(config, sort_keys=True, default=str))


@lru_cache(maxsize=256)
def _structure(text: str) -> str:
    from transformers import AutoConfig

    def pruned(data: dict[str, Any]) -> dict[str, Any]:
        return {k: pruned(v) if isinstance(v, dict) else v for k, v in data.items() if k not in _INERT}

    with quiet("the merged model's configuration is not valid", "check the base's config.json"):
        settings = pruned(AutoConfig.for_model(**json.loads(text)).to_dict())
    return json.dumps(settings, sort_keys=True, default=str)


def check_kind(base: Checkpoint) -> None:
    """InputError for what cannot be a language model here."""
    from transformers import CONFIG_MAPPING

    if base.config.get("is_encoder_decoder"):
        problem = (
            f"{base.path} is an encoder-decoder ({base.config.get('model_type')}), which is merged, but not scored"
        )
        raise InputError(problem, "for other models, let `model` of the fitness file build it")
    if base.config.get("auto_map") and base.config.get("model_type") not in CONFIG_MAPPING:
        problem = f"{base.path} needs its own Python code to run (auto_map in config.json)"
        raise InputError(problem, "code from checkpoints is not run; use an architecture that transformers has")


def load_model(base: Checkpoint, dtype: str, sharding: Sharding) -> PreTrainedModel:
    """The base's model. If it is stored quantized, transformers would keep it so: it is built, and its parameters are
    set by the first merge."""
    from transformers import GenerationConfig

    with quiet(f"{base.path} cannot be loaded as a causal language model", _NO_MODEL):
        if base.quantization is None:
            base.fetch()
            return load(base.path, torch_dtype(dtype), sharding)
        model = build(base.config, torch_dtype(dtype), sharding)
        if (base.path / GENERATION_FILE).is_file():
            model.generation_config = GenerationConfig.from_pretrained(base.path, local_files_only=True)
        return model


@contextlib.contextmanager
def quiet(problem: str, mend: str) -> Iterator[None]:
    """Runs transformers without progress bars and warnings, and turns its errors into one line."""
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except EvomergeError:
        raise
    except OutOfTime:
        raise InputError(f"{problem} (it takes more than {_SKELETON_SECONDS:g} s to build)", mend) from None
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{problem}: {_reason(error)}", "use a smaller dtype or more GPUs", Where("--device")
        ) from error
    except Exception as error:  # a configuration can make transformers fail with anything
        raise InputError(f"{problem} ({_reason(error)})", mend) from error
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _reason(error: Exception) -> str:
    """An error of a library on one line: some have the reason in the second one."""
    return shortened(" ".join(str(error).split()) or type(error).__name__)
