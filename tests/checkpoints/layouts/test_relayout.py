"""Checkpoints of one mixture of experts in two layouts are the same model, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.layouts.relayout import pieces
from evomerge.checkpoints.preflight import check_family
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident
from evomerge.recipe.recipe import Document, Input, Recipe, Slice

TINY = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8},
    "jamba": {"num_experts": 3, "mamba_d_state": 4, "mamba_expand": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
              "expert_layer_period": 1, "expert_layer_offset": 0, "use_mamba_kernels": False},
}  # fmt: skip


def family(folder: Path, kind: str) -> dict[str, Path]:
    """base, a and b, each in the layout of the hub and (`-fused`) in the one of transformers 5."""
    found = {}
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY, **CONFIGS[kind]))
        for layout, original in (("", True), ("-fused", False)):
            found[name + layout] = folder / (name + layout)
            model.save_pretrained(found[name + layout], save_original_format=original)
            tiny_models.write_tokenizer(found[name + layout])
    return found


def shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: tuple(info.shape) for name, info in checkpoint.tensors.items()}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("ours", ["", "-fused"])
def test_each_tensor_is_made_of_the_other_layouts(kind: str, ours: str, tmp_path: Path) -> None:
    models = family(tmp_path, kind)
    here, there = (Checkpoint.open(str(models["a" + end])) for end in (ours, "-fused" if not ours else ""))
    assert here.tensors.keys() != there.tensors.keys()
    made = pieces(here.config, shapes(here), shapes(there))
    assert made.keys() == here.tensors.keys() - there.tensors.keys()
    stored = {end: load_file(models["a" + end] / "model.safetensors") for end in ("", "-fused")}
    other = stored["-fused" if not ours else ""]
    for name, parts in made.items():
        built = parts.build([other[n] for n in parts.names])
        assert torch.equal(built, stored[ours][name])


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("base", ["", "-fused"])
def test_layouts_merge_with_each_other(kind: str, base: str, tmp_path: Path) -> None:
    models = family(tmp_path, kind)

    def ties(a: str, b: str) -> Recipe:
        inputs = tuple(Input(str(models[n]), None, {"weight": 0.5, "density": 0.5}) for n in (a, b))
        return Recipe((Document("ties", (Slice(inputs),), base=str(models["base" + base])),))

    alike, mixed = ties("a" + base, "b" + base), ties("a", "b-fused")
    opened = Checkpoint.open(str(models["base" + base]))
    check_family(opened, {n: Checkpoint.open(str(models[n])) for n in ("a", "b-fused")}, lambda name: None)
    expected = checkpoint_digest(merge(alike, tmp_path / "alike"))
    assert checkpoint_digest(merge(mixed, tmp_path / "mixed")) == expected
    resident = Resident(opened, SourceBank(), "float32")
    assert resident.materialize(alike) == expected
    assert resident.materialize(mixed) == expected
    assert resident.materialize(alike) == expected
