"""Models with adapters whose names are not those of their files: in memory as on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident
from evomerge.recipe.recipe import Document, Input, Recipe, Slice

_TEXT = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8,
         "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}  # fmt: skip
_MOE = {"num_local_experts": 3, "num_experts_per_tok": 2}
_VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
           "image_size": 8, "patch_size": 4}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, int]], list[str]]] = {
    "mixtral": (
        "AutoModelForCausalLM",
        {**_TEXT, **_MOE},
        {"model.layers.0.mlp.experts": (6, 24), "model.layers.0.mlp.experts.base_layer": (6, 16)},
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
    "gpt_oss": (
        "AutoModelForCausalLM",
        {**_TEXT, **_MOE, "layer_types": ["full_attention"] * 2},
        {"model.layers.1.mlp.experts": (6, 24)},
        ["experts.down_proj"],
    ),
    "gemma3": (
        "AutoModelForImageTextToText",
        {"text_config": {**_TEXT, "sliding_window": 8}, "vision_config": _VISION, "mm_tokens_per_image": 4},
        {"model.language_model.layers.1.self_attn.q_proj": (2, 16)},
        [],
    ),
    "llava": (
        "AutoModelForImageTextToText",
        {
            "text_config": {**_TEXT, "model_type": "llama"},
            "vision_config": {**_VISION, "model_type": "clip_vision_model"},
        },
        {"model.language_model.layers.1.mlp.up_proj": (2, 16)},
        [],
    ),
}
_OUTPUTS = {"experts": 16, "base_layer": 48, "q_proj": 16, "up_proj": 24}
"""Of the adapted modules, by the last word of their names."""


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_scored_equals_exported(kind: str, tmp_path: Path) -> None:
    auto, config, modules, parameters = KINDS[kind]
    for seed, name in enumerate(("base", "a")):
        torch.manual_seed(seed)
        model = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(kind, **config))
        model.save_pretrained(tmp_path / name)
        tiny_models.write_tokenizer(tmp_path / name)
    (lora := tmp_path / "lora").mkdir()
    tensors = {}
    for module, (rank, inputs) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(rank, inputs) * 0.1
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(_OUTPUTS[module.split(".")[-1]], rank) * 0.1
    save_file(tensors, lora / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "base", "peft_version": "0.21.2"}
    (lora / "adapter_config.json").write_text(json.dumps({**told, "target_parameters": parameters}))
    base, adapted = str(tmp_path / "base"), f"{tmp_path / 'base'}+{lora}"
    inputs = tuple(Input(m, None, {"weight": 0.5, "density": 0.5}) for m in (str(tmp_path / "a"), adapted))
    recipe = Recipe((Document("ties", (Slice(inputs),), base=base),))
    scored = Resident(Checkpoint.open(base), SourceBank(), "float32")
    digest = scored.materialize(recipe)
    assert checkpoint_digest(merge(recipe, tmp_path / "out")) == digest
    alone = Recipe((Document("passthrough", (Slice((Input(adapted),)),)),))
    assert checkpoint_digest(merge(alone, tmp_path / "alone")) == scored.load(adapted)
    model, told = getattr(transformers, auto).from_pretrained(tmp_path / "alone", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    merged, before = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "base"))
    changed = [name for name, tensor in merged.items() if not torch.equal(tensor, before[name])]
    assert len(changed) == (9 if kind == "mixtral" else 1)
