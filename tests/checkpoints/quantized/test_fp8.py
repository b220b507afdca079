from __future__ import annotations

import quantized_models as models
import torch
from transformers import AutoModelForCausalLM

from evomerge.checkpoints.checkpoint import Checkpoint


def test_blocks_equal_what_transformers_loads(tmp_path):
    folder = models.write(tmp_path / "m", models.fp8_blocks, models.FP8)
    checkpoint = Checkpoint.open(str(folder))
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert set(checkpoint.tensors) == set(loaded)
    for name, tensor in loaded.items():
        assert torch.equal(checkpoint.read(name), tensor), name
    assert str(checkpoint.quantization) == "8-bit floats in blocks of 32 x 32, dequantized to bfloat16"
    assert "quantization_config" not in checkpoint.config
