"""bitsandbytes, against the library."""

from __future__ import annotations

import json

import pytest
import quantized_models as models
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes gives the expected tensors")

NAME = "model.layers.0.mlp.up_proj.weight"
SETTINGS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def four_bits(weight, **options):
    """The tensors that the library stores for a matrix."""
    kind = options.pop("dtype", torch.bfloat16)
    matrix = bnb.nn.Params4bit(weight.to(kind), requires_grad=False, **options).to("cpu")
    parts = matrix.quant_state.as_dict(packed=True)
    return {"weight": matrix.data, **{f"weight.{key}": value for key, value in parts.items()}}


def expected(parts):
    """Rows are at least as long as blocks here: where they are shorter, bitsandbytes 0.50 is wrong on processors."""
    state = {key: value for key, value in parts.items() if key != "weight"}
    state = bnb.functional.QuantState.from_dict(state, torch.device("cpu"))
    return bnb.functional.dequantize_4bit(parts["weight"], state)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_four_bits_equal_the_library(tmp_path, kind, nested, dtype):
    options = {"quant_type": kind, "compress_statistics": nested, "dtype": dtype}
    folder = models.write(tmp_path / "m", lambda w: four_bits(w, **options), SETTINGS, dtype=dtype)
    checkpoint, plain = Checkpoint.open(str(folder)), models.tensors(dtype=dtype)
    assert set(checkpoint.tensors) == set(plain)
    for name, tensor in plain.items():
        quantized = name.removesuffix(".weight") in models.matrices()
        want = expected(four_bits(tensor.float(), **options)) if quantized else tensor
        assert torch.equal(checkpoint.read(name), want), name
    assert checkpoint.quantization.words == f"bitsandbytes, 4 bits ({kind.upper()})"


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
def test_codes_may_be_stored_as_floats(tmp_path, storage):
    options = {"quant_type": "nf4", "quant_storage": storage}
    folder = models.write(tmp_path / "m", lambda w: four_bits(w, **options), SETTINGS)
    weight = models.tensors()[NAME].float()
    assert torch.equal(Checkpoint.open(str(folder)).read(NAME), expected(four_bits(weight, quant_type="nf4")))


def test_equals_what_transformers_loads_and_dequantizes(tmp_path):
    from transformers import AutoModelForCausalLM

    settings = {**SETTINGS, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    settings |= {"bnb_4bit_compute_dtype": "bfloat16", "load_in_8bit": False, "llm_int8_skip_modules": None}
    folder = models.write(tmp_path / "m", lambda w: four_bits(w, quant_type="nf4", compress_statistics=True), settings)
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu").dequantize().state_dict()
    checkpoint = Checkpoint.open(str(folder))
    assert set(checkpoint.tensors) == set(loaded)
    for name, tensor in loaded.items():
        assert torch.equal(checkpoint.read(name), tensor), name


def test_a_block_may_be_cut_off_and_chunks_change_nothing(tmp_path, monkeypatch):
    weight = torch.randn(7, 90, generator=torch.Generator().manual_seed(0))
    parts = four_bits(weight, quant_type="nf4", blocksize=64, compress_statistics=True)
    folder = tmp_path / "m"
    tensors = {"a.0.weight": torch.ones(2), "a.1.weight": torch.ones(2), **{f"b.{n}": t for n, t in parts.items()}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", "quantization_config": SETTINGS}))
    save_file(tensors, folder / "model.safetensors")
    checkpoint = Checkpoint.open(str(folder))
    assert torch.equal(checkpoint.read("b.weight"), expected(parts))
    monkeypatch.setattr("evomerge.checkpoints.quantized.bitsandbytes.CHUNK", 128)
    assert torch.equal(checkpoint.read("b.weight"), expected(parts))


def eight_bits(weight):
    matrix = bnb.nn.Int8Params(weight.to(torch.float16), requires_grad=False).to("cpu")
    codes, largest, _ = bnb.functional.int8_vectorwise_quant(matrix.data.to(torch.float16))
    return {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def test_eight_bits_equal_the_library(tmp_path):
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    folder = models.write(tmp_path / "m", eight_bits, settings)
    parts = eight_bits(models.tensors()[NAME].float())
    want = bnb.functional.int8_vectorwise_dequant(parts["weight"], parts["SCB"]).to(torch.bfloat16)
    checkpoint = Checkpoint.open(str(folder))
    assert torch.equal(checkpoint.read(NAME), want)
    assert set(checkpoint.tensors) == set(models.tensors())
    assert checkpoint.quantization.words == "bitsandbytes, 8 bits"


def test_matrices_of_gpt2_are_turned_back(tmp_path):
    """Its layers store [inputs, outputs]; transformers turns them before it quantizes."""
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    parts = four_bits(weight.T.contiguous(), quant_type="nf4")
    tensors = {f"transformer.h.{i}.ln_1.weight": torch.ones(64) for i in range(2)}
    tensors |= {f"transformer.h.0.attn.c_attn.{n}": t for n, t in parts.items()}
    folder = tmp_path / "m"
    folder.mkdir()
    settings = {"model_type": "gpt2", "n_layer": 2, "dtype": "bfloat16", "quantization_config": SETTINGS}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors")
    read = Checkpoint.open(str(folder)).read("transformer.h.0.attn.c_attn.weight")
    assert read.shape == weight.shape
    assert torch.equal(read, expected(parts).T)


def test_an_adapter_trained_on_a_quantized_base_is_merged_into_what_it_stands_for(tmp_path):
    folder = models.write(tmp_path / "m", lambda w: four_bits(w, quant_type="nf4"), SETTINGS)
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(4, 64, generator=generator) * 0.1, torch.randn(128, 4, generator=generator) * 0.1
    adapter = tmp_path / "lora"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(folder)}))
    module = f"base_model.model.{NAME.removesuffix('.weight')}"
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    checkpoint, base = Checkpoint.open(str(adapter)), Checkpoint.open(str(folder)).read(NAME)
    assert torch.equal(checkpoint.read(NAME), (base.float() + 2 * (b @ a)).to(torch.bfloat16))
    assert checkpoint.quantization == Checkpoint.open(str(folder)).quantization


BROKEN = {
    "no shape": lambda state: state.pop("shape"),
    "a huge shape": lambda state: state.update(shape=[2**20, 2**20]),
    "no block": lambda state: state.update(blocksize=0),
    "another dtype": lambda state: state.update(dtype="float64"),
    "text as an offset": lambda state: state.update(nested_offset="much"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_state_is_an_error(tmp_path, change):
    folder = models.write(tmp_path / "m", lambda w: four_bits(w, quant_type="nf4"), SETTINGS)
    stored, key = load_file(folder / "model.safetensors"), f"{NAME}.quant_state.bitsandbytes__nf4"
    state = json.loads(bytes(stored[key].tolist()))
    change(state)
    stored[key] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"up_proj\.weight"):
        Checkpoint.open(str(folder))


def test_a_part_that_is_missing_is_named(tmp_path):
    folder = models.write(tmp_path / "m", lambda w: four_bits(w, quant_type="nf4"), SETTINGS)
    stored = load_file(folder / "model.safetensors")
    del stored[f"{NAME}.absmax"]
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"it lacks .*up_proj\.weight\.absmax"):
        Checkpoint.open(str(folder))
