"""Checkpoints whose files hold headers only: their tensors are drawn when they are read, on the device that wants them.

So a model of billions of parameters is there in seconds, and takes no disk. Everything that opens, plans and merges
checkpoints meets them as ordinary ones; transformers, which loads the base by itself, finds zeros.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _synthetic import draw, llama_config, shapes
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint

_BYTES = 2  # of an element: all is bfloat16


class Drawn(Checkpoint):
    """A checkpoint that draws a tensor each time it is read. `index`: 0 for the base, else the source's number."""

    index = 0
    device = "cpu"

    def read(self, name: str) -> Tensor:
        return draw(name, tuple(self.stored[name].shape), self.index, 0, self.device)


def shape(width: int, inner: int, layers: int, heads: int, pairs: int, words: int) -> dict[str, Any]:
    """The configuration of a Llama; `pairs`: heads of keys and values."""
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": words}
    kinds = {"num_attention_heads": heads, "num_key_value_heads": pairs, "head_dim": width // heads}
    return {**llama_config(10**6), **sizes, **kinds}


def size(config: dict[str, Any]) -> int:
    """Bytes of the model."""
    return _BYTES * sum(math.prod(shape) for shape in shapes(config).values())


def fitting(config: dict[str, Any], models: float, free: int) -> dict[str, Any]:
    """The configuration with as many of its layers as leave room for so many models in `free` bytes: at least one."""
    layers = int(config["num_hidden_layers"])
    while layers > 1 and models * size({**config, "num_hidden_layers": layers}) > free:
        layers -= 1
    return {**config, "num_hidden_layers": layers}


def drawn(
    folder: Path, config: dict[str, Any], sources: int, device: str, write_tokenizer: Callable[[Path], None]
) -> dict[str, Checkpoint]:
    """The base and its sources by their references, drawn on `device`."""
    found: dict[str, Checkpoint] = {}
    for index in range(sources + 1):
        place = folder / (f"source{index}" if index else "base")
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(config, indent=2))
        _write_headers(place / "model.safetensors", config)
        write_tokenizer(place)
        checkpoint = Drawn.open(str(place))
        assert isinstance(checkpoint, Drawn)
        checkpoint.index, checkpoint.device = index, device
        found[checkpoint.reference] = checkpoint
    return found


def _write_headers(file: Path, config: dict[str, Any]) -> None:
    """A file of weights that is all hole behind its headers."""
    headers: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes(config).items():
        start, end = end, end + _BYTES * math.prod(shape)
        headers[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(headers).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + end)
