"""Asks transformers what it would do with a checkpoint: which parameters it would fill in at random, and which tensors
it would not read. It is asked with the configuration and the tensors' shapes alone: the model is loaded on the meta
device, by transformers' own code, from tensors without memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evomerge.checkpoints.layouts.unread import keys_of, model_class, model_config, quiet
from evomerge.escape import shortened
from evomerge.safety.limits import OutOfTime, TimeLimit

_SECONDS = 300.0
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class LoadReport:
    """What transformers says of a checkpoint that it loads.

    Attributes:
        missing: parameters for which no tensor is stored, and which it fills in at random.
        unexpected: stored tensors that it does not read, but for those that it knows of and is silent about.
        mismatched: parameters whose stored tensor has another shape: how the shapes differ, by name.
        failure: why the model cannot be built or loaded at all.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: Mapping[str, str] = field(default_factory=dict)
    failure: str | None = None


def load_report(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> LoadReport | None:
    """What loading a checkpoint of a configuration and tensors of these shapes would report. None if transformers has
    no class for the model: it needs code of its own, or is none of transformers."""
    import torch

    settings = {
        key: value for key, value in config.items() if key not in ("quantization_config", "dtype", "torch_dtype")
    }
    if not isinstance(settings.get("model_type"), str):
        return None
    with quiet():
        try:
            kind = model_class(settings)
            if kind is None:
                return None
            tensors = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
            with TimeLimit(_SECONDS):
                model, info = kind.from_pretrained(
                    None,
                    config=model_config(settings),
                    state_dict=tensors,
                    device_map="meta",
                    dtype=torch.float32,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
                keys = keys_of(model, shapes) if info["unexpected_keys"] else {}
        except OutOfTime:
            return LoadReport(failure=f"it takes more than {_SECONDS:g} s to build")
        except Exception as error:  # a configuration can make transformers fail with anything
            return LoadReport(failure=shortened(" ".join(str(error).split()) or type(error).__name__))
    mismatched = {
        n: f"{list(stored)} is stored, and {list(wanted)} wanted" for n, stored, wanted in info["mismatched_keys"]
    }
    return LoadReport(
        missing=tuple(sorted(info["missing_keys"])),
        unexpected=tuple(n for n, (key, read) in keys.items() if not read and key in info["unexpected_keys"]),
        mismatched=dict(sorted(mismatched.items())),
    )


def without_numbers(name: str) -> str:
    """A tensor's name for all layers: with a star in place of each number."""
    return _NUMBER.sub("*", name)
