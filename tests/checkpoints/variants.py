"""Copies of a tiny model that differ from it in one thing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from evomerge.checkpoints.checkpoint import Checkpoint


def write_adapter(folder: Path, base: Checkpoint, rank: int = 2) -> Path:
    """A LoRA adapter of PEFT's format on one matrix."""
    import torch
    from safetensors.torch import save_file

    outputs, inputs = base.tensors["model.layers.0.mlp.up_proj.weight"].shape
    random = torch.Generator().manual_seed(1)
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    folder.mkdir()
    save_file(
        {
            f"{prefix}.lora_A.weight": torch.randn(rank, inputs, generator=random),
            f"{prefix}.lora_B.weight": torch.randn(outputs, rank, generator=random),
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["up_proj"], "task_type": "CAUSAL_LM"}
    config["base_model_name_or_path"] = base.resolved()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def reordered_copy(folder: Path, out: Path) -> Path:
    """A copy of a model whose last two tokens, and their rows, change places."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    state = load_file(out / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        order = [*range(len(state[name]) - 2), len(state[name]) - 1, len(state[name]) - 2]
        state[name] = state[name][order].contiguous()
    save_file(state, out / "model.safetensors", {"format": "pt"})
    data: dict[str, Any] = json.loads((out / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    last = sorted(vocab, key=vocab.get)[-2:]
    vocab[last[0]], vocab[last[1]] = vocab[last[1]], vocab[last[0]]
    (out / "tokenizer.json").write_text(json.dumps(data))
    return out


def with_token(folder: Path, out: Path, token: str) -> Path:
    """A copy of a model with one more token, and a row for it."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    state = load_file(out / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], state[name].mean(0, keepdim=True)])
    save_file(state, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["vocab_size"] += 1
    (out / "config.json").write_text(json.dumps(config))
    data = json.loads((out / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    data["added_tokens"].append({"id": config["vocab_size"] - 1, "content": token, "special": True, **flags})
    (out / "tokenizer.json").write_text(json.dumps(data))
    return out
