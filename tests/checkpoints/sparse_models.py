"""Models of full size that take no room: safetensors files whose weights are a hole in the file."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from evomerge.checkpoints.headers import SIZES, WORDS


def write_sparse(folder: Path, layers: int = 80, hidden: int = 8192, inner: int = 28672, shards: int = 30) -> Path:
    """A Llama of 70 billion parameters (by default) in bfloat16, all zeros, in `shards` files with an index."""
    folder.mkdir(parents=True)
    heads, keys, rows = hidden // 128, hidden // 1024, 128256
    shapes = {"model.embed_tokens.weight": (rows, hidden)}
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{part}_proj.weight": (n * 128, hidden) for part, n in _sides(heads, keys)}
        shapes |= {f"{at}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes |= {f"{at}.self_attn.o_proj.weight": (hidden, hidden), f"{at}.mlp.down_proj.weight": (hidden, inner)}
        shapes |= {f"{at}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (rows, hidden)}
    each, names, files = math.ceil(len(shapes) / shards), list(shapes), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number * each : (number + 1) * each]
        files |= dict.fromkeys(part, file)
        _write_hole(folder / file, {name: shapes[name] for name in part}, "bfloat16")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": 128,
        "vocab_size": rows,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _sides(heads: int, keys: int) -> tuple[tuple[str, int], ...]:
    return (("q", heads), ("k", keys), ("v", keys))


def _write_hole(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": WORDS[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
