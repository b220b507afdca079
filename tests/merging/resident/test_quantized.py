"""Mixtures of experts that are stored quantized, in memory: as transformers dequantizes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quantized_models
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Mxfp4Config,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident, as_it_is

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
SIZES |= {"vocab_size": 40, "num_experts_per_tok": 2}


def qwen() -> Any:
    config = Qwen3MoeConfig(**SIZES, intermediate_size=128, moe_intermediate_size=32, num_experts=4)
    return Qwen3MoeForCausalLM(config)


def gpt_oss() -> Any:
    return GptOssForCausalLM(GptOssConfig(**SIZES, intermediate_size=32, num_local_experts=4))


def fp8(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if tensor.ndim != 2 or ".layers." not in name or "mlp.gate." in name:
        return {name: tensor}
    module = name.removesuffix(".weight")
    return {f"{module}.{part}": value for part, value in quantized_models.fp8_blocks(tensor.float()).items()}


def mxfp4(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if not name.endswith(("gate_up_proj", "down_proj")):
        return {name: tensor}
    experts, inputs, outputs = tensor.shape
    generator, groups = torch.Generator().manual_seed(len(name)), (experts, outputs, inputs // 32)
    return {
        f"{name}_blocks": torch.randint(0, 256, (*groups, 16), generator=generator, dtype=torch.uint8),
        f"{name}_scales": torch.randint(110, 125, groups, generator=generator, dtype=torch.uint8),
    }


@pytest.mark.parametrize(
    ("make", "quantize", "settings", "options"),
    [
        (qwen, fp8, {**quantized_models.FP8, "modules_to_not_convert": ["lm_head", "gate"]}, {}),
        (gpt_oss, mxfp4, {"quant_method": "mxfp4"}, {"quantization_config": Mxfp4Config(dequantize=True)}),
    ],
    ids=["qwen3_moe in fp8", "gpt_oss in mxfp4"],
)
def test_experts_in_memory(
    tmp_path: Path,
    make: Callable[[], Any],
    quantize: Callable[[str, Tensor], dict[str, Tensor]],
    settings: dict[str, Any],
    options: dict[str, Any],
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make().to(torch.bfloat16).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    parts = {name: part for key, tensor in stored.items() for name, part in quantize(key, tensor).items()}
    save_file({n: t.contiguous() for n, t in parts.items()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    tiny_models.write_tokenizer(tmp_path, ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(37))])
    base = Checkpoint.open(str(tmp_path))
    resident = Resident(base, SourceBank(), "bfloat16")
    resident.materialize(as_it_is(base.reference, "bfloat16"))
    expected, found = (
        AutoModelForCausalLM.from_pretrained(tmp_path, **options).state_dict(),
        resident.model.state_dict(),
    )
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
