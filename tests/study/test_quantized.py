"""Checkpoints that are stored quantized, searched, merged, exported and evaluated as what they stand for."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.study.dry_run import dry_run
from tests.conftest import save_tiny

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoints"))

import quantized_models

Study = Callable[..., Path]
SIZES = {"hidden_size": 64, "intermediate_size": 128}


def _bitsandbytes(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    import bitsandbytes

    matrix = bitsandbytes.nn.Params4bit(weight.bfloat16(), requires_grad=False, quant_type="nf4").to("cpu")
    state = matrix.quant_state.as_dict(packed=True)
    return {"weight": matrix.data, **{f"weight.{key}": value for key, value in state.items()}}


FORMATS: dict[str, tuple[Callable[[torch.Tensor], dict[str, torch.Tensor]], dict[str, Any], str]] = {
    "fp8": (quantized_models.fp8_blocks, quantized_models.FP8, "8-bit floats in blocks of 32 x 32"),
    "gptq": (quantized_models.gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32}, "GPTQ of 4 bits"),
    "bitsandbytes": (
        _bitsandbytes,
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "bitsandbytes, 4 bits (NF4)",
    ),
}


@pytest.fixture(params=FORMATS)
def quantized_study(request: pytest.FixtureRequest, tiny_study: Study) -> str:
    """A study of which the base and one source are stored quantized; returns how, in words."""
    quantize, settings, words = FORMATS[request.param]
    if request.param == "bitsandbytes":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes packs the weights")
    shutil.rmtree("models")
    save_tiny(Path("models/base"), 1, **SIZES)
    for seed, name in enumerate(("one", "two"), start=2):
        save_tiny(Path("models", name), seed, near=Path("models/base"), scale=0.1)
    for name in ("base", "one"):
        quantized_models.rewrite(Path("models", name), quantize, settings)
    tiny_study()
    return words


def test_a_search_and_its_export(quantized_study: str) -> None:
    facts = dry_run("space.yaml")
    assert facts["quantized"] == [f"{name}: {quantized_study}, dequantized to bfloat16" for name in ("base", "one")]
    result = evomerge.search("space.yaml", trials=6)
    assert all(t.state != "failed" for t in result.search.trials)
    evomerge.export("space", "best.yaml", trial=4, allow_infeasible=True)
    merged = evomerge.merge("best.yaml", "merged")
    assert checkpoint_digest(merged) == result.search.trials[4].digest
    config = json.loads((merged / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    assert f"stored quantized: {quantized_study}, dequantized to bfloat16" in (merged / "README.md").read_text()
    _, report = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_quantized_model_scores_as_what_it_stands_for(quantized_study: str) -> None:
    recipe = "merge_method: passthrough\nmodels: [{model: models/one}]\ndtype: float32\n"
    Path("plain.yaml").write_text(recipe)
    plain = evomerge.merge("plain.yaml", "plain")
    stored, wide = Checkpoint.open("models/one"), Checkpoint.open(str(plain))
    assert (stored.dtype, wide.dtype) == ("bfloat16", "float32")
    assert all(torch.equal(stored.read(name).float(), wide.read(name)) for name in stored.tensors)
    Path("plain.yaml").write_text(recipe.replace("float32", "bfloat16"))
    evomerge.merge("plain.yaml", "plain", overwrite=True)
    ours, theirs = (
        evomerge.evaluate(model, "fitness.yaml", references={"base": "models/base"})
        for model in ("models/one", "plain")
    )
    assert (ours.scores, ours.digest) == (theirs.scores, theirs.digest)


def test_a_gguf_file_as_a_source(tiny_study: Study) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf writes the file and dequantizes it")

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["sources"]["two"] = "models/two.gguf"

    tiny_study(change)
    names, writer = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2), gguf.GGUFWriter("models/two.gguf", "llama")
    for name, tensor in quantized_models.tiny_models.read(Path("models/two")).items():
        if "q_proj" in name or "k_proj" in name:  # as llama.cpp orders them, by its two heads
            tensor = tensor.reshape(2, 2, 4, -1).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored, tuned = Checkpoint.open("models/base+models/two.gguf"), Checkpoint.open("models/two")
    assert all(torch.equal(stored.read(name), tuned.read(name)) for name in tuned.tensors)
    assert dry_run("space.yaml")["quantized"] == ["two: GGUF (F32), dequantized to float32"]
    result = evomerge.search("space.yaml", trials=5)
    evomerge.export("space", "best.yaml", trial=4, allow_infeasible=True)
    assert checkpoint_digest(evomerge.merge("best.yaml", "merged")) == result.search.trials[4].digest
