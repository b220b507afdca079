"""compressed-tensors, against the library and transformers."""

from __future__ import annotations

import pytest
import quantized_models as models
import tiny_models
import torch
from safetensors.torch import save_file

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import InputError

pytest.importorskip("compressed_tensors", reason="compressed-tensors packs and gives the expected tensors")

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

NAME = "model.layers.0.mlp.up_proj.weight"
INTEGER, FLOAT = {"type": "int", "dynamic": False}, {"type": "float", "num_bits": 8, "symmetric": True}
SCHEMES = {
    "int4 in groups": ("pack-quantized", {**INTEGER, "num_bits": 4, "strategy": "group", "group_size": 32}),
    "int4 shifted": (
        "pack-quantized",
        {**INTEGER, "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "int4 by rows": ("pack-quantized", {**INTEGER, "num_bits": 4, "strategy": "channel"}),
    "int3 shifted": (
        "pack-quantized",
        {**INTEGER, "num_bits": 3, "strategy": "group", "group_size": 16, "symmetric": False},
    ),
    "int8 packed": ("pack-quantized", {**INTEGER, "num_bits": 8, "strategy": "channel"}),
    "int8 by rows": ("int-quantized", {**INTEGER, "num_bits": 8, "strategy": "channel"}),
    "int8 shifted": ("int-quantized", {**INTEGER, "num_bits": 8, "strategy": "channel", "symmetric": False}),
    "fp8 of the tensor": ("float-quantized", {**FLOAT, "strategy": "tensor"}),
    "fp8 by rows": ("float-quantized", {**FLOAT, "strategy": "channel"}),
    "fp8 in blocks": ("float-quantized", {**FLOAT, "strategy": "block", "block_structure": [48, 32]}),
    "fp8 in groups": ("naive-quantized", {**FLOAT, "strategy": "group", "group_size": 16}),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16, "symmetric": True},
    ),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {"type": "float", "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True},
    ),
    "mxfp8": ("mxfp8-quantized", {**FLOAT, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
}


def scheme(weights):
    return QuantizationScheme(targets=["Linear"], weights=weights)


def settings(kind, weights, **more):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        **more,
    }


def compressed(weight, kind, weights, dtype):
    """The tensors that the library stores for a matrix."""
    rows, columns = weight.shape
    bits, highest = weights["num_bits"], {4: 6.0, 8: 448.0}[weights["num_bits"]] if weights["type"] == "float" else None
    highest = highest or 2 ** (bits - 1) - 1
    strategy = weights["strategy"]
    if strategy == "block":
        height, width = weights["block_structure"]
        padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        blocks = padded.reshape(-(-rows // height), height, -(-columns // width), width)
        largest = blocks.abs().amax(dim=(1, 3))
    elif strategy in ("group", "tensor_group"):
        largest = weight.reshape(rows, -1, weights["group_size"]).abs().amax(dim=2)
    else:
        largest = weight.abs().amax(dim=1, keepdim=True) if strategy == "channel" else weight.abs().max().reshape(1)
    state = {"weight": weight.to(dtype), "weight_scale": (largest / highest).to(dtype)}
    if kind == "nvfp4-pack-quantized":
        whole = torch.tensor([448 * 6 / weight.abs().max()])
        state["weight_global_scale"] = whole
        state["weight_scale"] = (largest / highest * whole).to(torch.float8_e4m3fn).to(dtype)
    if kind.startswith("mx"):
        state["weight_scale"] = torch.exp2(torch.log2(largest / highest).ceil()).to(dtype)
    if not weights.get("symmetric", True):
        generator = torch.Generator().manual_seed(0)
        shape = state["weight_scale"].shape
        state["weight_zero_point"] = torch.randint(-2, 3, shape, generator=generator, dtype=torch.int8)
    library = BaseCompressor.get_value_from_registry(kind)
    return library.compress(state, scheme(weights))


def expected(parts, kind, weights, dtype):
    library = BaseCompressor.get_value_from_registry(kind)
    return library.decompress(dict(parts), scheme(weights))["weight"].to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", SCHEMES)
def test_equals_the_library(tmp_path, name, dtype, monkeypatch):
    kind, weights = SCHEMES[name]
    folder = models.write(
        tmp_path / "m", lambda w: compressed(w, kind, weights, dtype), settings(kind, weights), dtype=dtype
    )
    checkpoint, plain = Checkpoint.open(str(folder)), models.tensors(dtype=dtype)
    assert set(checkpoint.tensors) == set(plain)
    for tensor, value in plain.items():
        if tensor.removesuffix(".weight") in models.matrices():
            parts = compressed(value.float(), kind, weights, dtype)
            assert torch.equal(checkpoint.read(tensor), expected(parts, kind, weights, dtype)), tensor
        else:
            assert torch.equal(checkpoint.read(tensor), value)
    whole = checkpoint.read(NAME)
    monkeypatch.setattr("evomerge.checkpoints.quantized.packed.CHUNK", 200)
    assert torch.equal(checkpoint.read(NAME), whole)


@pytest.mark.parametrize("name", ["int4 in groups", "int4 shifted", "int4 by rows", "fp8 by rows", "int8 by rows"])
def test_equals_what_transformers_loads(tmp_path, name):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    kind, weights = SCHEMES[name]
    folder = models.write(
        tmp_path / "m", lambda w: compressed(w, kind, weights, torch.bfloat16), settings(kind, weights)
    )
    options = CompressedTensorsConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(folder, quantization_config=options).state_dict()
    checkpoint = Checkpoint.open(str(folder))
    for tensor in checkpoint.tensors:
        assert torch.equal(checkpoint.read(tensor), loaded[tensor]), tensor


def test_groups_of_a_configuration_say_how_each_module_is_packed(tmp_path):
    four, eight = SCHEMES["int4 in groups"][1], SCHEMES["int8 packed"][1]
    groups = {
        "a": {"targets": ["re:.*mlp.*"], "weights": eight, "format": "pack-quantized"},
        "b": {"targets": ["Linear"], "weights": four, "format": "pack-quantized"},
    }
    stored = {}
    for name, tensor in models.tensors().items():
        module, weights = name.removesuffix(".weight"), eight if ".mlp." in name else four
        quantized = module in models.matrices()
        parts = (
            compressed(tensor.float(), "pack-quantized", weights, torch.bfloat16) if quantized else {"weight": tensor}
        )
        stored |= {f"{module}.{part}": value for part, value in parts.items()}
    folder = models.write(tmp_path / "m", models.gptq, settings("mixed-precision", four, config_groups=groups))
    save_file(stored, folder / "model.safetensors")
    checkpoint = Checkpoint.open(str(folder))
    for name, weights in ((NAME, eight), ("model.layers.0.self_attn.q_proj.weight", four)):
        parts = compressed(models.tensors()[name].float(), "pack-quantized", weights, torch.bfloat16)
        assert torch.equal(checkpoint.read(name), expected(parts, "pack-quantized", weights, torch.bfloat16))
    assert checkpoint.quantization.words == "compressed-tensors, integers of 4 bits, integers of 8 bits"


def test_inputs_may_belong_to_groups_in_any_order(tmp_path):
    """Written by earlier versions (actorder: group); the library of today reads none."""
    kind, weights = SCHEMES["int4 in groups"]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))

    def shuffled(weight):
        parts = compressed(weight, kind, weights, torch.bfloat16)
        if weight.shape[1] != 64:
            return parts
        return {**parts, "weight_g_idx": (torch.argsort(order) // 32).int()}

    folder = models.write(tmp_path / "m", shuffled, settings(kind, weights))
    parts = compressed(models.tensors()[NAME].float(), kind, weights, torch.bfloat16)
    steps = expected({**parts, "weight_scale": torch.ones_like(parts["weight_scale"])}, kind, weights, torch.bfloat16)
    want = steps * parts["weight_scale"][:, torch.argsort(order) // 32]
    assert torch.equal(Checkpoint.open(str(folder)).read(NAME), want)


def test_scales_of_activations_and_caches_are_left_out(tmp_path):
    kind, weights = SCHEMES["fp8 of the tensor"]

    def with_activations(weight):
        return {
            **compressed(weight, kind, weights, torch.bfloat16),
            "input_scale": torch.ones(1),
            "k_scale": torch.ones(1),
        }

    folder = models.write(tmp_path / "m", with_activations, settings(kind, weights))
    assert set(Checkpoint.open(str(folder)).tensors) == set(models.tensors())


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "stored sparsely"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "are transformed"),
        ({"config_groups": {}}, "of None bits"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, more, problem):
    kind, weights = SCHEMES["int4 in groups"]
    folder = models.write(
        tmp_path / "m", lambda w: compressed(w, kind, weights, torch.bfloat16), settings(kind, weights, **more)
    )
    with pytest.raises(InputError, match=problem):
        Checkpoint.open(str(folder))


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"])
def test_parts_that_do_not_fit_are_an_error(tmp_path, part):
    kind, weights = SCHEMES["int4 shifted"]
    folder = models.write(
        tmp_path / "m", lambda w: compressed(w, kind, weights, torch.bfloat16), settings(kind, weights)
    )
    stored, name = tiny_models.read(folder), f"{NAME.removesuffix('.weight')}.{part}"
    stored[name] = stored[name][:-1].contiguous()
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(InputError, match="up_proj"):
        Checkpoint.open(str(folder))
