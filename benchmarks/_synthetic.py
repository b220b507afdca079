"""Llama-shaped checkpoints of any size, with random weights: a base and fine-tunes of it, in bfloat16. Or mixtures of
experts of the same size, in the layout of the hub: one tensor for each matrix of each expert.

The same arguments make the same bytes. A model that is there already is not made again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

BASE_SPREAD, DELTA_SPREAD = 0.02, 4e-4
_SHARD_BYTES = 2 << 30
_HEAD, _WORDS = 64, ("<unk>", "<s>", "</s>", "hello", "world")


def build(folder: Path, parameters: int, sources: int, seed: int = 0, experts: int = 0) -> list[Path]:
    """Folders of the base and then of each source, in `folder`.

    The base's matrices are N(0, 0.02) and its norm weights N(1, 0.02); a source is the base + N(0, 4e-4), rounded once.
    """
    config = mixtral_config(parameters, experts) if experts else llama_config(parameters)
    made = []
    for index in range(sources + 1):
        place = folder / (f"source{index}" if index else "base")
        if not (place / "config.json").exists():
            place.mkdir(parents=True, exist_ok=True)
            _write_model(place, config, index, seed)
        made.append(place)
    return made


def llama_config(parameters: int) -> dict[str, Any]:
    """A Llama configuration of about so many parameters, with a layer for each 64 of width where that fits."""

    def layers(width: int) -> int:
        return max(1, round((parameters - 2 * _vocabulary(width) * width) / _layer_parameters(width)))

    width = min(range(128, 8193, 128), key=lambda w: abs(layers(w) - w // _HEAD))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": _inner(width),
        "num_hidden_layers": layers(width),
        "num_attention_heads": width // _HEAD,
        "num_key_value_heads": width // _HEAD // 2,
        "head_dim": _HEAD,
        "vocab_size": _vocabulary(width),
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def mixtral_config(parameters: int, experts: int) -> dict[str, Any]:
    """A Mixtral configuration whose experts have together as many parameters as the MLPs of the Llama of that size."""
    config = llama_config(parameters)
    config |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    config |= {"num_local_experts": experts, "num_experts_per_tok": 2, "sliding_window": None}
    return config | {"intermediate_size": config["intermediate_size"] // experts}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by its name in the checkpoint, with its shape."""
    width, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }
    if experts := config.get("num_local_experts"):
        mlp = {"w1": (inner, width), "w2": (width, inner), "w3": (inner, width)}
        layer |= {f"block_sparse_moe.experts.{i}.{name}": shape for i in range(experts) for name, shape in mlp.items()}
        layer["block_sparse_moe.gate"] = (experts, width)
    else:
        layer |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, width)}
    for i in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return found | {"model.norm.weight": (width,), "lm_head.weight": (words, width)}


def _vocabulary(width: int) -> int:
    return 32_000 if width >= 1024 else 16 * width


def _inner(width: int) -> int:
    return round(2.75 * width / _HEAD) * _HEAD


def _layer_parameters(width: int) -> int:
    return 3 * width * width + 3 * width * _inner(width) + 2 * width


def _write_model(folder: Path, config: dict[str, Any], index: int, seed: int) -> None:
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes(config).items():
        size += 2 * torch.Size(shape).numel()
        if size > _SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 2 * torch.Size(shape).numel()
        shards[-1].append(name)
    single = len(shards) == 1
    weight_map = {}
    for i, names in enumerate(shards):
        file = "model.safetensors" if single else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: draw(name, shapes(config)[name], index, seed) for name in names}
        save_file(tensors, str(folder / file), {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if not single:
        whole = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(whole))
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2))  # last: it marks the folder as complete


def draw(name: str, shape: tuple[int, ...], index: int, seed: int, device: str = "cpu") -> Tensor:
    """A tensor of the base (index 0) or of a source, made on `device`. Each kind of device has numbers of its own."""
    base = _noise(name, shape, 0, seed, device) * BASE_SPREAD
    base = (base if len(shape) > 1 else base + 1).bfloat16()
    return (base.float() + _noise(name, shape, index, seed, device) * DELTA_SPREAD).bfloat16() if index else base


def _noise(name: str, shape: tuple[int, ...], index: int, seed: int, device: str) -> Tensor:
    drawn = hashlib.sha256(f"{seed}/{index}/{name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(drawn[:7], "big"))
    return torch.randn(shape, generator=generator, device=device)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of five words: nothing is read or written with these models."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel({word: i for i, word in enumerate(_WORDS)}, unk_token="<unk>"))
    told = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **told).save_pretrained(folder)
