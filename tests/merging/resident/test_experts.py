"""Mixtures of experts: each stored expert has its part of the fused parameter's gradient, and those of a layer are
merged in one call."""

from __future__ import annotations

import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.merging.disk.stream import checkpoint_digest, merge
from evomerge.merging.resident import materialize
from evomerge.merging.resident.bank import SourceBank
from evomerge.merging.resident.materialize import Resident
from evomerge.merging.resident.placement import FILE
from evomerge.recipe.recipe import Document, Input, Recipe, Slice
from tests.merging.kernels.test_compiled import READY, compiled

TINY = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
# All experts answer every token, so that no choice of experts jumps between two points.
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 3},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 3, "moe_intermediate_size": 8, "head_dim": 8},
    "qwen2_moe": {"num_experts": 3, "num_experts_per_tok": 3, "moe_intermediate_size": 8, "decoder_sparse_step": 1,
                  "shared_expert_intermediate_size": 8},
}  # fmt: skip
IDS = torch.tensor([[3, 7, 1, 12, 5, 9, 4, 18]])
STEP = 1e-2


def write(kind: str, folder: Path) -> dict[str, str]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY, **KINDS[kind]))
    for name in ("base", "a", "b"):
        if name != "base":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        tiny_models.write_tokenizer(folder / name)
    return {name: str(folder / name) for name in ("base", "a", "b")}


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_the_central_differences(kind: str, tmp_path: Path) -> None:
    models = write(kind, tmp_path)
    resident = Resident(Checkpoint.open(models["base"]), SourceBank(), "float32")
    groups = ("experts.0.", "experts.2.", "self_attn")

    def recipe(moved: str = "", by: float = 0.0) -> Recipe:
        entries = [{"filter": g, "value": 0.4 + (by if g == moved else 0.0)} for g in groups] + [{"value": 0.4}]
        inputs = (Input(models["a"], None, {"weight": tuple(entries)}), Input(models["b"], None, {"weight": 0.3}))
        return Recipe((Document("task_arithmetic", (Slice(inputs),), base=models["base"]),))

    def loss() -> torch.Tensor:
        return resident.model(input_ids=IDS, labels=IDS).loss

    resident.materialize(recipe())
    pulls = resident.pulls()
    with pulls.open(), torch.enable_grad():
        loss().backward()  # type: ignore[no-untyped-call]
    slopes = pulls.slopes()
    for group in groups:
        found = sum(of["weight"][0] for name, of in slopes.items() if group in name)  # type: ignore[misc]
        ends = []
        for by in (STEP, -STEP):
            resident.materialize(recipe(group, by))
            with torch.no_grad():
                ends.append(float(loss()))
        assert found == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=0.02, abs=2e-4)
        assert abs(found) > 1e-4


@pytest.mark.slow
@compiled
def test_experts_that_are_merged_in_one_call_have_the_digest_of_the_folder(tmp_path, monkeypatch):
    models = write("mixtral", tmp_path)
    joined = []

    def find(signature):
        if signature.apart is not None:
            joined.append((signature.kernel.function, signature.apart[0]))
        return READY.find(signature)

    monkeypatch.setattr(
        materialize, "Compiled", lambda: SimpleNamespace(find=find, collect=lambda: None, spent=READY.spent)
    )
    resident = Resident(Checkpoint.open(models["base"]), SourceBank(), "float32")
    inputs = (Input(models["a"], None, {"weight": 0.3, "density": 0.6}),
              Input(models["b"], None, {"weight": 0.6, "density": (0.2, 0.9)}))  # fmt: skip
    recipe = Recipe((Document("ties", (Slice(inputs),), base=models["base"], out_dtype="float32"),))
    assert resident.materialize(recipe) == checkpoint_digest(merge(recipe, tmp_path / "out"))
    # Of two layers w1 and w3, which are halves of one parameter, and w2, whose experts follow each other in theirs
    assert Counter(joined) == {(name, apart): n for name in ("deltas", "fingerprint")
                               for apart, n in ((True, 4), (False, 2))}  # fmt: skip


def test_experts_that_stay_in_files_are_read_one_by_one(tmp_path, monkeypatch):
    """Those of a layer together may be larger than the memory that a placement has left."""
    models = write("mixtral", tmp_path)
    opened = {name: Checkpoint.open(path) for name, path in models.items()}
    bank = SourceBank(placement=SimpleNamespace(home=lambda checkpoint, name: FILE, pinned=False))
    resident = Resident(opened["base"], bank, "float32")
    alive, most = weakref.WeakSet(), []
    read = Checkpoint.read

    def counted(checkpoint, name):
        tensor = read(checkpoint, name)
        if "experts" in name:
            alive.add(tensor)
            most.append(len(alive))
        return tensor

    monkeypatch.setattr(Checkpoint, "read", counted)
    inputs = (Input(models["a"], None, {"weight": 0.3}), Input(models["b"], None, {"weight": 0.6}))
    recipe = Recipe((Document("task_arithmetic", (Slice(inputs),), base=models["base"], out_dtype="float32"),))
    assert resident.materialize(recipe) == checkpoint_digest(merge(recipe, tmp_path / "out"))
    assert max(most) <= 2 * 3, "the base's and two sources', while the last expert's are let go"
