"""LoRA adapters as sources of a search, and as models to evaluate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer

import evomerge
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.disk.stream import checkpoint_digest
from evomerge.recipe.mergekit import read_recipe
from evomerge.recipe.relocated import anchored

Study = Callable[..., Path]
MODULE = "model.layers.0.mlp.up_proj"


@pytest.fixture
def adapter() -> Callable[[], Path]:
    """Writes an adapter on `models/base` of the current folder; it names a base that is not here."""

    def write() -> Path:
        with safe_open("models/base/model.safetensors", "pt") as stream:
            outputs, inputs = stream.get_tensor(f"{MODULE}.weight").shape
        folder, draw = Path("adapter"), torch.Generator().manual_seed(0)
        folder.mkdir()
        save_file(
            {
                f"base_model.model.{MODULE}.lora_A.weight": torch.randn(2, inputs, generator=draw),
                f"base_model.model.{MODULE}.lora_B.weight": torch.randn(outputs, 2, generator=draw),
            },
            folder / "adapter_model.safetensors",
        )
        told = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "base_model_name_or_path": "/home/somebody/base"}
        (folder / "adapter_config.json").write_text(json.dumps(told))
        return folder

    return write


@pytest.mark.parametrize("written", ["adapter", "models/base+adapter"])
def test_a_search_over_an_adapter(written: str, tiny_study: Study, adapter: Callable[[], Path]) -> None:
    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["sources"]["two"] = written

    tiny_study(change)
    adapter()
    result = evomerge.search("space.yaml", trials=6)
    assert all(t.state != "failed" for t in result.search.trials)
    evomerge.export("space", "best.yaml", allow_infeasible=True)
    pair = f"{Path('models/base').resolve()}+{Path('adapter').resolve()}"
    recipe = read_recipe(Path("best.yaml"))
    assert "models/base+./adapter" in recipe.models()
    assert pair in anchored(recipe).models()
    merged = evomerge.merge("best.yaml", "merged")
    assert "- `base` with `adapter`\n" in (merged / "README.md").read_text()
    assert Checkpoint.open("merged").layers == 2


def test_a_model_with_its_adapter_is_evaluated_as_it_would_be_merged(
    tiny_study: Study, adapter: Callable[[], Path]
) -> None:
    tiny_study()
    adapter()
    Path("recipe.yaml").write_text("merge_method: passthrough\nmodels: [{model: models/base+adapter}]\n")
    merged = evomerge.merge("recipe.yaml", "merged")
    found = [evomerge.evaluate(model, "fitness.yaml", references={"base": "models/base"})
             for model in ("models/base+adapter", "recipe.yaml", "merged")]  # fmt: skip
    assert found[0].scores == found[1].scores == found[2].scores
    assert {e.digest for e in found} == {checkpoint_digest(merged)}
    assert (
        found[0].digest != evomerge.evaluate("models/base", "fitness.yaml", references={"base": "models/base"}).digest
    )


@pytest.mark.parametrize("policy", ["base", "union", "two"])
def test_a_search_over_an_adapter_with_new_tokens(policy: str, tiny_study: Study) -> None:
    """Embeddings and head grew and were trained, and PEFT saved them under three names each."""

    def change(space: dict[str, Any], fitness: dict[str, Any]) -> None:
        space["sources"]["two"], space["tokenizer"] = "adapter", policy

    tiny_study(change)
    tensors, draw = {}, torch.Generator().manual_seed(0)
    with safe_open("models/base/model.safetensors", "pt") as stream:
        for module in ("model.embed_tokens", "lm_head"):
            old = stream.get_tensor(f"{module}.weight")
            grown = torch.cat([old, torch.randn(2, old.shape[1], generator=draw)])
            for word, tensor in (("", grown + 0.01), (".modules_to_save", grown + 0.01), (".original_module", grown)):
                tensors[f"base_model.model.{module}{word}.weight"] = tensor.clone()
    Path("adapter").mkdir()
    save_file(tensors, Path("adapter/adapter_model.safetensors"))
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "modules_to_save": ["embed_tokens", "lm_head"]}
    Path("adapter/adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": "models/base"}))
    tokenizer = AutoTokenizer.from_pretrained("models/base")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained("adapter")
    result = evomerge.search("space.yaml", trials=6)
    assert all(t.state != "failed" for t in result.search.trials)
    evomerge.export("space", "best.yaml", allow_infeasible=True)
    merged = Checkpoint.open(str(evomerge.merge("best.yaml", "merged")))
    assert merged.tensors["lm_head.weight"].shape[0] == (13 if policy == "base" else 15)
