"""GPTQ and AWQ, against what gptqmodel made of the same codes (references.safetensors, by make_references.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import quantized_models as models
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError

REFERENCES = load_file(Path(__file__).parent / "references.safetensors")
GPTQ = sorted({name.split(".")[0] for name in REFERENCES} - {"awq"})
NAME = "model.layers.0.mlp.up_proj.weight"


def one(folder, case, dtype="float16", drop=(), **settings):
    """A checkpoint with one quantized matrix."""
    parts = {n.split(".")[1]: t for n, t in REFERENCES.items() if n.startswith(f"{case}.")}
    expected = parts.pop("expected")
    tensors = {"blocks.0.norm.weight": torch.ones(2), "blocks.1.norm.weight": torch.ones(2)}
    tensors |= {f"head.{part}": tensor for part, tensor in parts.items() if part not in drop}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"torch_dtype": dtype, "quantization_config": settings}))
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open(str(folder)), expected


@pytest.mark.parametrize("case", GPTQ)
def test_gptq_equals_gptqmodel(tmp_path, case, monkeypatch):
    version = {"checkpoint_format": "gptq_v2"} if case.endswith("v2") else {}
    checkpoint, expected = one(tmp_path / "m", case, quant_method="gptq", bits=4, group_size=32, **version)
    assert expected.dtype == torch.float16
    assert torch.equal(checkpoint.read("head.weight"), expected)
    monkeypatch.setattr("evomerge.checkpoints.quantized.packed.CHUNK", 200)
    assert torch.equal(checkpoint.read("head.weight"), expected)
    assert checkpoint.quantization.words == f"GPTQ of {case.split('-')[1]} bits"
    assert set(checkpoint.tensors) == {"blocks.0.norm.weight", "blocks.1.norm.weight", "head.weight"}


@pytest.mark.parametrize("known", ["by its inputs", "by the settings"])
def test_the_bits_of_a_matrix_of_few_outputs(tmp_path, known, monkeypatch):
    whole = {part: REFERENCES[f"gptq-4.{part}"] for part in ("qweight", "scales", "qzeros", "expected")}
    few = {part: whole[part][:, :8] for part in ("qweight", "scales")}
    few |= {"qzeros": whole["qzeros"][:, :1], "expected": whole["expected"][:8]}
    for part, tensor in few.items():
        monkeypatch.setitem(REFERENCES, f"gptq-4.{part}", tensor.contiguous())
    drop, settings = ((), {}) if known == "by its inputs" else (("g_idx",), {"bits": 4})
    checkpoint, expected = one(tmp_path / "m", "gptq-4", drop=drop, quant_method="gptq", **settings)
    assert torch.equal(checkpoint.read("head.weight"), expected)


def test_without_the_groups_of_inputs_they_follow_each_other(tmp_path):
    checkpoint, expected = one(tmp_path / "m", "gptq-4", drop=("g_idx",), quant_method="gptq")
    assert torch.equal(checkpoint.read("head.weight"), expected)


def test_another_dtype_is_the_last_rounding(tmp_path):
    checkpoint, expected = one(tmp_path / "m", "gptq-4", "bfloat16", quant_method="gptq")
    assert torch.equal(checkpoint.read("head.weight"), expected.to(torch.bfloat16))


def test_awq_equals_gptqmodel(tmp_path, monkeypatch):
    checkpoint, expected = one(tmp_path / "m", "awq", quant_method="awq", version="gemm", bits=4)
    assert torch.equal(checkpoint.read("head.weight"), expected)
    monkeypatch.setattr("evomerge.checkpoints.quantized.packed.CHUNK", 200)
    assert torch.equal(checkpoint.read("head.weight"), expected)
    assert checkpoint.quantization.words == "AWQ of 4 bits"


@pytest.mark.parametrize("quantize", [models.gptq, models.awq])
def test_a_whole_model_comes_near_to_what_was_quantized(tmp_path, quantize):
    settings = {"quant_method": quantize.__name__, "bits": 4, "group_size": 32}
    folder = models.write(tmp_path / "m", quantize, settings, dtype=torch.float16)
    checkpoint = Checkpoint.open(str(folder))
    for name, tensor in models.tensors(dtype=torch.float16).items():
        read = checkpoint.read(name)
        assert (read.dtype, read.shape) == (torch.float16, tensor.shape)
        assert (read - tensor).abs().max() < 0.02  # half a step of 16 over the widest group


def test_early_settings_stand_beside_the_configuration(tmp_path):
    folder = models.write(tmp_path / "m", models.gptq, {}, dtype=torch.float16)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False}))
    checkpoint = Checkpoint.open(str(folder))
    assert checkpoint.quantization.words == "GPTQ of 4 bits"
    assert folder / "quantize_config.json" in checkpoint.files()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "laid out for one kernel"),
        ({"quant_method": "awq", "version": "gemv"}, "laid out for one kernel"),
        ({"quant_method": "awq"}, "has codes, zero points and scales of the shapes"),
    ],
)
def test_other_layouts_are_refused(tmp_path, settings, problem):
    with pytest.raises(InputError, match=problem):
        one(tmp_path / "m", "gptq-4", **settings)


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
def test_parts_that_do_not_fit_are_an_error(tmp_path, part):
    folder = models.write(tmp_path / "m", models.gptq, {"quant_method": "gptq"}, dtype=torch.float16)
    stored, name = tiny_models.read(folder), f"{NAME.removesuffix('.weight')}.{part}"
    stored[name] = stored[name][:-1].contiguous() if part != "g_idx" else stored[name].float()
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(InputError, match="up_proj"):
        Checkpoint.open(str(folder))


def test_a_group_that_there_is_not_is_an_error(tmp_path):
    folder = models.write(tmp_path / "m", models.gptq, {"quant_method": "gptq"}, dtype=torch.float16)
    stored, name = tiny_models.read(folder), f"{NAME.removesuffix('.weight')}.g_idx"
    stored[name] = stored[name] + 7
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(InputError, match="its weights cannot be dequantized"):
        Checkpoint.open(str(folder)).read(NAME)
