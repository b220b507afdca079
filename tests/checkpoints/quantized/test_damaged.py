"""Whatever is wrong with a quantized checkpoint is one line, when it is opened or when a tensor is read."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantized_models as models
import tiny_models
import torch
from safetensors.torch import save_file
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError

MODULE = "model.layers.0.mlp.up_proj"


def four_bits(weight: Tensor) -> dict[str, Tensor]:
    import bitsandbytes

    matrix = bitsandbytes.nn.Params4bit(weight.bfloat16(), requires_grad=False, quant_type="nf4").to("cpu")
    state = matrix.quant_state.as_dict(packed=True)
    return {"weight": matrix.data, **{f"weight.{key}": value for key, value in state.items()}}


def integers(weight: Tensor) -> dict[str, Tensor]:
    """compressed-tensors of 4 bits, with zero points."""
    codes, zeros, scales = models.grouped(weight, 4, 32)
    return {
        "weight_packed": models.words(codes.T, 4),
        "weight_shape": torch.tensor(weight.shape),
        "weight_scale": scales.T,
        "weight_zero_point": models.words(zeros, 4).T,
    }


WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
FORMATS: dict[str, tuple[Callable[[Tensor], dict[str, Tensor]], dict[str, Any]]] = {
    "fp8": (models.fp8_blocks, models.FP8),
    "gptq": (models.gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}),
    "awq": (models.awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "compressed-tensors": (
        integers,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
        },
    ),
    "bitsandbytes": (four_bits, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}
DAMAGES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "gone": lambda t: None,
    "empty": lambda t: t[:0],
    "shorter": lambda t: t[:-1],
    "flat": lambda t: t.reshape(-1),
    "deeper": lambda t: t[None],
    "a number": lambda t: t.reshape(-1)[:1].reshape(()),
    "twice": lambda t: torch.cat([t, t]),
    "of bytes": lambda t: t.view(torch.uint8) if t.ndim else t,
    "of 64 bits": lambda t: t.to(torch.int64),
    "of floats": lambda t: t.to(torch.float32),
    "other values": lambda t: torch.full_like(t, 77),
}
VALUES = [None, "x", -1, 0, 1.5, [], {}, [[1]], {"a": {"b": 1}}, True, 10**30]


def attempt(folder: Path) -> None:
    """Opens and reads it. Only InputError may come of that."""
    with contextlib.suppress(InputError):
        checkpoint = Checkpoint.open(str(folder))
        for name in checkpoint.tensors:
            if name.startswith(MODULE):
                tensor = checkpoint.read(name)
                info = checkpoint.tensors[name]
                assert (tuple(tensor.shape), str(tensor.dtype)) == (info.shape, f"torch.{info.dtype}")


@pytest.fixture(params=FORMATS)
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "bitsandbytes" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes packs the weights")
    return models.write(tmp_path / "m", *FORMATS[request.param])


def test_damaged_tensors(whole: Path) -> None:
    stored = tiny_models.read(whole)
    for name in [name for name in stored if name.startswith(MODULE)]:
        for damage in DAMAGES.values():
            changed = damage(stored[name])
            others = {n: t for n, t in stored.items() if n != name}
            save_file(others | ({} if changed is None else {name: changed.contiguous()}), whole / "model.safetensors")
            attempt(whole)


def test_damaged_settings(whole: Path) -> None:
    config = json.loads((whole / "config.json").read_text())

    def changed(settings: Any, value: Any) -> list[Any]:
        """The settings with each part of them, at any depth, replaced."""
        if not isinstance(settings, dict):
            return [value]
        inner = [{**settings, key: new} for key, old in settings.items() for new in changed(old, value)]
        return [value, *inner]

    for value in VALUES:
        for settings in changed(config["quantization_config"], value):
            (whole / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
            attempt(whole)
