"""Other families than Llama: other names for layers, embeddings and heads."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.layouts import layout
from evomerge.errors import InputError
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.merging.plan.plan import plan
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident
from evomerge.recipe.recipe import Document, Input, Recipe, Slice

_COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 20, "n_positions": 32},
    "gpt_neox": {**_COMMON, "intermediate_size": 24},
    "qwen3": {**_COMMON, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24, "tie_word_embeddings": True},
    "gemma2": {**_COMMON, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 24},
    "opt": {**_COMMON, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
}


def write(kind, folder, **config):
    models = {}
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **_TOKENS, **config))
        model.save_pretrained(folder / name)
        tiny_models.write_tokenizer(folder / name)
        models[name] = str(folder / name)
    return models


def ties(models):
    inputs = tuple(Input(models[n], None, {"weight": 0.5, "density": 0.5}) for n in ("a", "b"))
    return Recipe((Document("ties", (Slice(inputs),), base=models["base"]),))


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_scored_equals_exported(kind, tmp_path):
    models = write(kind, tmp_path, **CONFIGS[kind])
    base = Checkpoint.open(models["base"])
    assert base.layers == 2
    assert base.stack.place(base.embedding) == "before"
    scored = Resident(base, SourceBank(), "float32")
    assert scored.digest() == checkpoint_digest(models["base"])
    digest = scored.materialize(ties(models))
    folder = merge(ties(models), tmp_path / "out")
    assert checkpoint_digest(folder) == digest
    ids = torch.arange(1, 9)[None]
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, scored.model(ids).logits)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_model_built_of_its_configuration_is_the_loaded_one(kind, tmp_path):
    """What a recipe of another depth or vocabulary is merged into."""
    models = write(kind, tmp_path, **CONFIGS[kind])
    base, bank = Checkpoint.open(models["base"]), SourceBank()
    loaded = Resident(base, bank, "float32")
    shorter = Recipe((Document("passthrough", (Slice((Input(models["base"], (0, 1)),)),), out_dtype="float32"),))
    built = Resident(base, bank, "float32", planned=plan(shorter, bank.open))
    assert built.load(models["base"]) == loaded.digest()
    ids = torch.arange(1, 9)[None]
    assert torch.equal(built.model(ids).logits, loaded.model(ids).logits)


def test_what_is_converted_in_an_unknown_way_merges_to_disk_only(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_OPERATIONS", {})
    models = write("mixtral", tmp_path, **_COMMON, num_key_value_heads=1, intermediate_size=24, num_local_experts=2)
    assert AutoModelForCausalLM.from_pretrained(merge(ties(models), tmp_path / "out"))
    with pytest.raises(InputError, match="merged to disk, but not in memory"):
        Resident(Checkpoint.open(models["base"]), SourceBank(), "float32")
