"""MXFP4, against transformers."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError

NAMES = ("gate_up_proj", "down_proj")


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory):
    """A tiny gpt-oss whose experts are stored as OpenAI stores them."""
    folder = tmp_path_factory.mktemp("gpt_oss")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_local_experts": 4}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 40}
    config = GptOssConfig(**sizes, num_experts_per_tok=2, dtype="bfloat16")
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    stored, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    for layer in range(2):
        for name in NAMES:
            experts, inputs, outputs = stored.pop(f"model.layers.{layer}.mlp.experts.{name}").shape
            groups = (experts, outputs, inputs // 32)
            blocks = torch.randint(0, 256, (*groups, 16), generator=generator, dtype=torch.uint8)
            scales = torch.randint(110, 125, groups, generator=generator, dtype=torch.uint8)
            start = f"model.layers.{layer}.mlp.experts.{name}"
            stored |= {f"{start}_blocks": blocks, f"{start}_scales": scales}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def test_equals_what_transformers_loads(gpt_oss):
    checkpoint = Checkpoint.open(str(gpt_oss))
    loaded = AutoModelForCausalLM.from_pretrained(gpt_oss, quantization_config=Mxfp4Config(dequantize=True))
    loaded = loaded.state_dict()
    assert set(checkpoint.tensors) == set(loaded)
    for name, tensor in loaded.items():
        assert torch.equal(checkpoint.read(name), tensor), name
    assert str(checkpoint.quantization) == "4-bit floats (MXFP4), dequantized to bfloat16"


def test_equals_the_function_of_transformers(gpt_oss):
    stored, name = load_file(gpt_oss / "model.safetensors"), "model.layers.1.mlp.experts.gate_up_proj"
    expected = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"])
    assert torch.equal(Checkpoint.open(str(gpt_oss)).read(name), expected)


def test_scales_that_do_not_fit(gpt_oss, tmp_path):
    stored, name = load_file(gpt_oss / "model.safetensors"), "model.layers.1.mlp.experts.gate_up_proj_scales"
    (tmp_path / "config.json").write_text((gpt_oss / "config.json").read_text())
    save_file({**stored, name: stored[name][:, :-1].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="gate_up_proj has codes"):
        Checkpoint.open(str(tmp_path))
