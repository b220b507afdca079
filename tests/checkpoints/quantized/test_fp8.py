"""8-bit floats, against transformers' own dequantization."""

from __future__ import annotations

import json

import pytest
import quantized_models as models
import tiny_models
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError

NAME = "model.layers.0.mlp.up_proj.weight"
E8M0 = torch.float8_e8m0fnu


def test_blocks_equal_what_transformers_loads(tmp_path):
    folder = models.write(tmp_path / "m", models.fp8_blocks, models.FP8)
    checkpoint = Checkpoint.open(str(folder))
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert set(checkpoint.tensors) == set(loaded)
    for name, tensor in loaded.items():
        assert torch.equal(checkpoint.read(name), tensor), name
    assert str(checkpoint.quantization) == "8-bit floats in blocks of 32 x 32, dequantized to bfloat16"
    assert "quantization_config" not in checkpoint.config


def one(tmp_path, parts, **settings):
    """A checkpoint in which one matrix is stored as these parts, by the ending of their names."""
    tensors = tiny_models.base_tensors(dtype=torch.bfloat16)
    module = NAME.removesuffix(".weight")
    tensors = {n: t for n, t in tensors.items() if n != NAME} | {f"{module}{end}": t for end, t in parts.items()}
    quantization = {"quant_method": "fp8", **settings}
    return Checkpoint.open(str(tiny_models.write(tmp_path / "m", tensors, quantization_config=quantization)))


def codes(seed=0, shape=(24, 16)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.float8_e4m3fn)


def scales(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1


@pytest.mark.parametrize(
    ("end", "scale"),
    [
        (".weight_scale_inv", scales(3, 4)),
        (".weight_scale_inv", scales(3, 4).to(torch.bfloat16)),
        (".weight_scale_inv", scales()),
        (".weight_scale", scales(1)),
        (".weight_scale", scales(24, 1)),
        (".scale", scales(3, 2)),
        (".scale", (scales(3, 2) * 8).to(E8M0)),
        (".qscale_weight", scales()),
        (".weight_scale_inv", torch.tensor([[120, 130], [127, 118]], dtype=torch.uint8)),
    ],
)
def test_every_kind_of_scale(tmp_path, end, scale):
    weight = codes()
    checkpoint = one(tmp_path, {".weight": weight, end: scale, ".activation_scale": torch.ones(())})
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    assert torch.equal(checkpoint.read(NAME), expected)
    assert set(checkpoint.tensors) == set(tiny_models.shapes())


@pytest.mark.parametrize("kind", [E8M0, torch.uint8])
def test_four_bits_in_bytes(tmp_path, kind):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randint(-128, 128, (24, 8), generator=generator, dtype=torch.int8)
    scale = torch.randint(118, 130, (24, 4), generator=generator, dtype=torch.uint8)
    scale = scale.view(E8M0) if kind == E8M0 else scale
    checkpoint = one(tmp_path, {".weight": weight, ".weight_scale_inv": scale})
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    assert torch.equal(checkpoint.read(NAME), expected)


@pytest.mark.parametrize("scale", [scales(4, 3, 2), scales(4, 1, 1), scales(4)])
def test_stacked_experts(tmp_path, scale):
    weight = codes(shape=(4, 24, 16))
    checkpoint = one(tmp_path, {".weight": weight, ".weight_scale_inv": scale})
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale.reshape(4, *(scale.shape[1:] or (1, 1))))
    assert torch.equal(checkpoint.read(NAME), expected.to(torch.bfloat16))


def test_the_last_blocks_may_be_shorter(tmp_path):
    # DeepSeek-V3's kv_a_proj_with_mqa has 576 rows and blocks of 128, so 5 of them; transformers 5.24 refuses these
    weight, scale = codes(), scales(3, 2)
    checkpoint = one(tmp_path, {".weight": weight, ".weight_scale_inv": scale}, weight_block_size=[10, 12])
    factors = scale.repeat_interleave(10, 0)[:24].repeat_interleave(12, 1)[:, :16]
    assert torch.equal(checkpoint.read(NAME), (weight.float() * factors).to(torch.bfloat16))


def test_chunks_change_nothing(tmp_path, monkeypatch):
    checkpoint = one(tmp_path, {".weight": codes(), ".weight_scale_inv": scales(3, 4)})
    whole = checkpoint.read(NAME)
    monkeypatch.setattr("evomerge.checkpoints.quantized.packed.CHUNK", 40)
    assert torch.equal(checkpoint.read(NAME), whole)


@pytest.mark.parametrize("scale", [scales(5, 4), scales(3, 4, 1), torch.ones(3, 4, dtype=torch.int32), scales(0, 4)])
def test_scales_that_do_not_fit(tmp_path, scale):
    with pytest.raises(InputError, match=r"up_proj\.weight"):
        one(tmp_path, {".weight": codes(), ".weight_scale_inv": scale})


def test_a_weight_without_scale_is_refused(tmp_path):
    with pytest.raises(InputError, match="is float8_e4m3fn"):
        one(tmp_path, {".weight": codes()})


def test_a_setting_that_stayed_behind_changes_nothing(tmp_path):
    tensors = tiny_models.base_tensors()
    folder = tiny_models.write(tmp_path / "m", tensors, quantization_config={"quant_method": "fp8"})
    checkpoint = Checkpoint.open(str(folder))
    assert checkpoint.quantization is None
    assert "quantization_config" not in checkpoint.config
    assert torch.equal(checkpoint.read(NAME), tensors[NAME])


def test_scales_in_another_shard_count_as_files_of_the_checkpoint(tmp_path):
    folder = models.write(tmp_path / "m", models.fp8_blocks, models.FP8)
    stored = tiny_models.read(folder)
    (folder / "model.safetensors").unlink()
    halves = [{n: t for n, t in stored.items() if n.endswith("_scale_inv") is part} for part in (False, True)]
    weight_map = {}
    for i, half in enumerate(halves, start=1):
        save_file(half, folder / f"model-0000{i}-of-00002.safetensors")
        weight_map |= dict.fromkeys(half, f"model-0000{i}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = Checkpoint.open(str(folder))
    before = checkpoint.fingerprint()
    assert folder / "model-00002-of-00002.safetensors" in checkpoint.files()
    first = next(iter(halves[1]))
    save_file({**halves[1], first: halves[1][first] * 2}, folder / "model-00002-of-00002.safetensors")
    assert Checkpoint.open(str(folder)).fingerprint() != before
