"""Hybrids and state-space models: their config.json holds numbers that JSON has no word for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.building import check_buildable
from evomerge.merging.resident.materialize import Resident
from evomerge.recipe.recipe import Document, Input, Recipe, Slice

_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_COMMON = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2}
_ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_PLAIN = {"head_dim": 8, "n_groups": 1, "chunk_size": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "mamba2": {**_COMMON, **_PLAIN, "state_size": 8, "num_heads": 4},
    "bamba": {**_COMMON, **_ATTENTION, **_MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**_COMMON, **_ATTENTION, **_MAMBA, "head_dim": 8, "mamba_d_ssm": 32},
    "granitemoehybrid": {
        **_COMMON, **_ATTENTION, **_MAMBA, "shared_intermediate_size": 24, "layer_types": ["mamba", "attention"],
        "num_local_experts": 0, "num_experts_per_tok": 0,
    },
    "nemotron_h": {
        **_COMMON, **_ATTENTION, **_PLAIN, "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8,
        "layers_block_type": ["mamba", "attention"],
    },
}  # fmt: skip


def write(kind: str, folder: Path) -> dict[str, str]:
    """A base and two others, as transformers saves them."""
    models = {}
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_TOKENS, **CONFIGS[kind])).save_pretrained(
            folder / name
        )
        tiny_models.write_tokenizer(folder / name)
        models[name] = str(folder / name)
    return models


def ties(models: dict[str, str]) -> Recipe:
    inputs = tuple(Input(models[n], None, {"weight": 0.5, "density": 0.5}) for n in ("a", "b"))
    return Recipe((Document("ties", (Slice(inputs),), base=models["base"]),))


def written(folder: str | Path) -> Any:
    return json.loads((Path(folder) / "config.json").read_text())["time_step_limit"]


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_merged_folder_loads_and_says_what_its_base_says(kind: str, tmp_path: Path) -> None:
    models = write(kind, tmp_path)
    assert written(models["base"]) == [0.0, {"__float__": "Infinity"}]
    assert Checkpoint.open(models["base"]).config["time_step_limit"] == [0.0, float("inf")]
    folder = merge(ties(models), tmp_path / "out")
    assert written(folder) == written(models["base"])
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.time_step_limit[1] == float("inf")


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_scored_equals_exported(kind: str, tmp_path: Path) -> None:
    models = write(kind, tmp_path)
    base, bank = Checkpoint.open(models["base"]), SourceBank()
    check_buildable(base, plan(ties(models), bank.open))
    scored = Resident(base, bank, "float32")
    digest = scored.materialize(ties(models))
    folder = merge(ties(models), tmp_path / "out")
    assert checkpoint_digest(folder) == digest
    ids = torch.arange(1, 9)[None]
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, scored.model(ids).logits)
