"""Names the stored tensors that transformers does not read: prediction layers (``mtp.*``, the layer behind the stack),
value heads, scores, buffers of older versions.

A model is built from its configuration alone, without memory for its parameters. Each stored name is renamed as
transformers renames it when it loads (its conversion mapping, the prefix of the base model); a tensor whose name is
then no parameter or buffer of the model is not read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from evomerge.safety.limits import OutOfTime, TimeLimit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SECONDS = 120.0
"""A model of 100,000 modules takes some 20 s. A configuration can ask for a million."""
# The mappings of transformers in which a model type without `architectures` is looked up, in this order
_MAPPINGS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "MODEL_MAPPING",
)


def unread(config: Mapping[str, Any], names: Iterable[str]) -> frozenset[str] | None:
    """Which of the stored tensors `names` the model of a configuration does not read; None if transformers does not
    know the model, or cannot build it."""
    model = skeleton(config)
    return None if model is None else unread_by(model, names)


def unread_by(model: PreTrainedModel, names: Iterable[str]) -> frozenset[str]:
    """Which of the stored tensors `names` a model of transformers, of any device, does not read when it is loaded."""
    return frozenset(name for name, (_, read) in keys_of(model, names).items() if not read)


def keys_of(model: PreTrainedModel, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """For each stored tensor the name that transformers gives it when it loads the model, and whether the model has a
    parameter or buffer of that name. (Of tensors that are fused into one parameter, it is the name of that one.)"""
    state = model.state_dict()
    loader = Loader(model, state)
    keys = {name: loader.place(name)[0] for name in names}
    return {name: (key, key in state) for name, key in keys.items()}


class Loader:
    """Renames stored tensors as `from_pretrained` does."""

    def __init__(self, model: PreTrainedModel, state: dict[str, Any]) -> None:
        """`state`: the model's parameters and buffers, by name."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self._state, self._prefix = state, model.base_model_prefix
        mapping = get_model_conversion_mapping(model)
        self._renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
        self._converters = [m for m in mapping if isinstance(m, WeightConverter)]

    @staticmethod
    def in_order(names: Iterable[str]) -> list[str]:
        """The order in which the loader takes them: experts are stacked by their numbers."""
        from transformers.core_model_loading import dot_natural_key

        return sorted(names, key=dot_natural_key)

    def place(self, name: str) -> tuple[str, Any, str]:
        """The name in the model; the converter that makes it of several tensors, or None; which of the converter's
        patterns the stored name is."""
        from transformers.core_model_loading import rename_source_key

        # Renamed, else as it is; with the base model's prefix added or removed in either case.
        key, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._state)
        if key not in self._state and name in self._state:
            key, pattern = rename_source_key(name, [], [], self._prefix, self._state)
        converter = next((c for c in self._converters if pattern in c.source_patterns), None)
        return key, converter, pattern or ""


def skeleton(config: Mapping[str, Any]) -> PreTrainedModel | None:
    """The model of a configuration on the meta device; None if transformers does not know it or cannot build it. Code
    of the checkpoint's own is never run."""
    if not isinstance(config.get("model_type"), str):
        return None
    # What is quantized says nothing of the parameters' names.
    settings = {k: v for k, v in config.items() if k not in ("quantization_config", "dtype", "torch_dtype")}
    return _skeleton(json.dumps(settings, sort_keys=True))


@lru_cache(maxsize=8)
def _skeleton(text: str) -> PreTrainedModel | None:
    import torch

    settings = json.loads(text)
    with quiet():
        try:
            with TimeLimit(_SECONDS), torch.device("meta"):
                kind = model_class(settings)
                return None if kind is None else kind(model_config(settings))
        except (Exception, OutOfTime):  # a configuration can make transformers fail with anything
            return None


def model_config(config: Mapping[str, Any]) -> Any:
    """The configuration as transformers' object. Whatever it raises is wrong with the configuration."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    decode = getattr(PreTrainedConfig, "_decode_special_floats", dict)  # {"__float__": "Infinity"}
    return CONFIG_MAPPING[config["model_type"]].from_dict(decode(dict(config)))


def model_class(config: Mapping[str, Any]) -> type[PreTrainedModel] | None:
    """The class of transformers that `architectures` names, else the one that its model type is mapped to. None where
    there is no such class."""
    import transformers
    from transformers import CONFIG_MAPPING, PreTrainedModel
    from transformers.models.auto import modeling_auto

    if config.get("model_type") not in CONFIG_MAPPING:
        return None
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    kind = CONFIG_MAPPING[config["model_type"]]
    for mapping in (getattr(modeling_auto, name) for name in _MAPPINGS):
        if kind in mapping:
            mapped = mapping[kind]
            return mapped[0] if isinstance(mapped, tuple) else mapped  # type: ignore[no-any-return]
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """A context in which transformers draws no progress bars and logs errors only."""
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
