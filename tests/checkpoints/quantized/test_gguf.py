"""GGUF files, against transformers and the package gguf."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import quantized_models as models
import tiny_models
import torch
from safetensors.torch import save_file

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.references import check_reference
from evomerge.errors import InputError

gguf = pytest.importorskip("gguf", reason="gguf writes the files and dequantizes them")

Q = gguf.GGMLQuantizationType
KINDS = [Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q5_1, Q.Q8_0]
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def write_base(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(models.config(**changes)))
    save_file(models.tensors(), folder / "model.safetensors", metadata={"format": "pt"})
    tiny_models.write_tokenizer(folder, ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(models.VOCAB - 3))])
    return folder


def converted(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """A tensor as llama.cpp's converter changes it."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    count = next((n for part, n in heads.items() if part in name), None)
    if count is None:
        return tensor
    return tensor.reshape(count, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def write(file: Path, kind: Any, tensors: dict[str, torch.Tensor], architecture: str = "llama", **raw: Any) -> Path:
    """`raw`: bytes, and their type, of a tensor by its name in the file."""
    config = models.config()
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(models.HIDDEN)
    writer.add_block_count(models.LAYERS)
    writer.add_feed_forward_length(models.INNER)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(models.VOCAB)
    writer.add_array("tokenizer.ggml.tokens", [f"w{i}" for i in range(models.VOCAB)])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, models.LAYERS)
    for name, tensor in tensors.items():
        target, values = names.get_name(name, (".weight",)), converted(name, tensor.float(), config).numpy()
        stored = kind if tensor.ndim == 2 else Q.F32
        if target in raw:
            continue
        writer.add_tensor(target, gguf.quants.quantize(values, stored), raw_dtype=stored)
    for target, (codes, stored) in raw.items():
        writer.add_tensor(target, codes, raw_dtype=stored)
    writer.add_tensor("rope_freqs.weight", numpy.ones(4, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def expected(name: str, tensor: torch.Tensor, kind: Any) -> torch.Tensor:
    if tensor.ndim == 1:
        return tensor.float()
    codes = gguf.quants.quantize(tensor.float().numpy(), kind)  # rows are quantized each by itself
    return torch.from_numpy(gguf.quants.dequantize(codes, kind).reshape(tensor.shape))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_equals_the_package(tmp_path: Path, base: Path, kind: Any) -> None:
    tensors = models.tensors(seed=1)
    file = write(tmp_path / "tuned.gguf", kind, tensors)
    checkpoint = Checkpoint.open(f"{base}+{file}")
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name), expected(name, tensor, kind).to(torch.bfloat16)), name
    assert checkpoint.quantization.words == f"GGUF ({', '.join(sorted({'F32', kind.name}))})"
    assert file in checkpoint.files()
    assert base / "model.safetensors" not in checkpoint.files()
    assert checkpoint.resolved() == f"{base}+{file}"


@pytest.mark.parametrize("kind", [Q.F16, Q.Q8_0], ids=lambda kind: kind.name)
def test_equals_what_transformers_loads(tmp_path: Path, base: Path, kind: Any) -> None:
    from transformers import AutoModelForCausalLM

    file = write(tmp_path / "tuned.gguf", kind, models.tensors(seed=1))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.bfloat16).state_dict()
    checkpoint = Checkpoint.open(f"{base}+{file}")
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.read(name), loaded[name]), name


@pytest.mark.parametrize("kind", [Q.Q4_K, Q.Q6_K, Q.Q2_K, Q.IQ4_XS], ids=lambda kind: kind.name)
def test_types_that_are_only_dequantized(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "HIDDEN", 256)  # a block of these types
    base, (_, wide) = write_base(tmp_path / "base"), gguf.GGML_QUANT_SIZES[kind]
    codes = numpy.random.default_rng(0).integers(0, 60, (models.INNER, wide), numpy.uint8)
    file = write(tmp_path / "tuned.gguf", Q.F16, models.tensors(), **{"blk.0.ffn_up.weight": (codes, kind)})
    checkpoint = Checkpoint.open(f"{base}+{file}")
    want = torch.from_numpy(gguf.quants.dequantize(codes, kind)).to(torch.bfloat16)
    assert torch.equal(checkpoint.read(NAME), want)
    monkeypatch.setattr("evomerge.checkpoints.quantized.packed.CHUNK", 1000)
    assert torch.equal(checkpoint.read(NAME), want)


def test_what_the_converter_added_to_the_norms_of_gemma_is_taken_away(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", model_type="gemma")
    file = write(tmp_path / "tuned.gguf", Q.F16, models.tensors(), "gemma")
    read, plain = Checkpoint.open(f"{base}+{file}").read, models.tensors()
    assert torch.equal(read("model.norm.weight"), (plain["model.norm.weight"].float() - 1).to(torch.bfloat16))
    assert torch.equal(read(NAME), plain[NAME].half().bfloat16())


def test_a_file_alone_belongs_to_the_base_of_the_search(tmp_path: Path, base: Path) -> None:
    file = write(tmp_path / "tuned.gguf", Q.Q8_0, models.tensors(seed=1))
    opened = Checkpoint.open(str(base))
    check_reference(str(file))
    assert Checkpoint.open(str(file), base=opened).resolved() == f"{base}+{file}"
    with pytest.raises(InputError, match=r"has weights only; write model\+tuned\.gguf"):
        Checkpoint.open(str(file))


def test_a_merge_with_a_gguf_file(tmp_path: Path, base: Path) -> None:
    file = write(tmp_path / "tuned.gguf", Q.Q8_0, models.tensors(seed=1))
    models_of = f"models: [{{model: {base}+{file}, parameters: {{weight: 1.0}}}}]"
    (tmp_path / "recipe.yaml").write_text(f"merge_method: task_arithmetic\nbase_model: {base}\n{models_of}\n")
    merged = evomerge.merge(tmp_path / "recipe.yaml", tmp_path / "merged")
    assert "stored quantized: GGUF (F32, Q8_0), dequantized to bfloat16" in (merged / "README.md").read_text()
    tuned = Checkpoint.open(f"{base}+{file}")
    read, plain = tiny_models.read(merged)[NAME], models.tensors()[NAME]
    assert torch.allclose(read.float(), tuned.read(NAME).float(), atol=2e-3)
    assert not torch.allclose(read.float(), plain.float(), atol=2e-2)


def test_what_does_not_fit_is_one_line(tmp_path: Path, base: Path) -> None:
    tensors = models.tensors()
    other = write(tmp_path / "other.gguf", Q.F16, tensors, "gemma")
    with pytest.raises(InputError, match="holds a model of the kind gemma, the base is llama"):
        Checkpoint.open(f"{base}+{other}")
    short = write(tmp_path / "short.gguf", Q.F16, {n: t for n, t in tensors.items() if n != NAME})
    with pytest.raises(InputError, match=r"lacks model\.layers\.0\.mlp\.up_proj\.weight"):
        Checkpoint.open(f"{base}+{short}")
    whole = write(tmp_path / "whole.gguf", Q.F16, tensors).read_bytes()
    for length in (0, 3, 20, 30, 200, 1000, len(whole) - 5000):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.gguf"):
            Checkpoint.open(f"{base}+{tmp_path / 'cut.gguf'}")
    draw = numpy.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in draw.integers(0, 2000, 3):
            damaged[place] = draw.integers(0, 256)
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        try:
            Checkpoint.open(f"{base}+{tmp_path / 'damaged.gguf'}").read(NAME)
        except InputError:
            continue
