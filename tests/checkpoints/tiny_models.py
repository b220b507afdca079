"""Llama checkpoints of a few thousand parameters, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LAYERS, HIDDEN, INNER, VOCAB, HEAD = 3, 16, 24, 20, 8


def config(**changes: Any) -> dict[str, Any]:
    data = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    return {**data, **changes}


def shapes(layers: int = LAYERS, tied: bool = False, vocab: int = VOCAB) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, HIDDEN)}
    for i in range(layers):
        start = f"model.layers.{i}"
        found |= {
            f"{start}.input_layernorm.weight": (HIDDEN,),
            f"{start}.self_attn.q_proj.weight": (2 * HEAD, HIDDEN),
            f"{start}.self_attn.k_proj.weight": (HEAD, HIDDEN),
            f"{start}.self_attn.v_proj.weight": (HEAD, HIDDEN),
            f"{start}.self_attn.o_proj.weight": (HIDDEN, 2 * HEAD),
            f"{start}.post_attention_layernorm.weight": (HIDDEN,),
            f"{start}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{start}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"{start}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
    found["model.norm.weight"] = (HIDDEN,)
    return found if tied else {**found, "lm_head.weight": (vocab, HIDDEN)}


def base_tensors(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.1 + (1.0 if "norm" in name else 0.0)).to(dtype)
        for name, shape in shapes(**changes).items()
    }


def tuned(tensors: dict[str, Tensor], seed: int, size: float = 0.02) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: (t + size * torch.randn(t.shape, generator=generator)).to(t.dtype) for n, t in tensors.items()}


def write_tokenizer(folder: Path, tokens: list[str] | None = None, chat_template: str | None = None) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = tokens or ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(VOCAB - 3))]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template)


def write(folder: Path, tensors: dict[str, Tensor], tokens: list[str] | None = None, **changes: Any) -> Path:
    """A whole checkpoint; `changes` are made to its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config(**{"dtype": dtype, **changes})))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, tokens)
    return folder


def write_sharded(folder: Path, tensors: dict[str, Tensor]) -> Path:
    write(folder, tensors)
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    weight_map = {}
    for i, half in enumerate(halves, start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({n: tensors[n] for n in half}, folder / file)
        weight_map |= dict.fromkeys(half, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def family(folder: Path, dtype: torch.dtype = torch.float32, tied: bool = False, count: int = 3) -> dict[str, Path]:
    """A base and fine-tunes of it: base, a, b, c."""
    tensors = base_tensors(0, dtype, tied=tied)
    models = {"base": tensors} | {"abcdefg"[i]: tuned(tensors, i + 1) for i in range(count)}
    return {name: write(folder / name, t, tie_word_embeddings=tied) for name, t in models.items()}


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, sharded or not."""
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
