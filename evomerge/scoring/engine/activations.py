"""Estimates the memory of a backward pass from a model's configuration. Loads nothing.

After Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv:2205.05198),
equations 1 and 2: the tensors that a layer saves, counted for gated layers without dropout as transformers runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints.structure import configured_layers, text_config

_MARGIN = 1.2
"""For what is not counted: rotary tables, embeddings, the allocator's rounding."""

_FLOAT32 = 4

CHUNK = 1 << 20
"""How many logits are reduced at a time: in float32 they fit a processor's cache."""


@dataclass(frozen=True)
class Dimensions:
    """A transformer's sizes.

    Attributes:
        hidden: the width of the residual stream.
        intermediate: the width of the feed-forward layers, over all experts that a token uses.
        layers: the number of layers.
        heads: the number of attention heads.
        vocabulary: the number of tokens in the vocabulary.
        bytes: of a number.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    bytes: int

    @classmethod
    def of(cls, config: Mapping[str, Any], bytes: int) -> Dimensions:
        """Reads a model's configuration under the usual keys; of a list with a number for each layer (Gemma 3n's
        `intermediate_size`) the largest. KeyError where a key is missing."""
        text = text_config(config)
        hidden = _first(text, "hidden_size", "n_embd", "d_model")
        wide = [key for key in ("intermediate_size", "n_inner", "ffn_dim") if text.get(key)]
        experts = _first(text, "num_experts_per_tok") if text.get("num_experts_per_tok") else 1
        return cls(
            hidden=hidden,
            intermediate=experts * (_first(text, *wide) if wide else 4 * hidden),
            layers=configured_layers(config) or _first(text, "num_hidden_layers"),
            heads=_first(text, "num_attention_heads", "n_head", "num_heads"),
            vocabulary=_first(text, "vocab_size"),
            bytes=bytes,
        )


@dataclass(frozen=True)
class Extent:
    """The size of one micro-batch.

    Attributes:
        positions: the number of tokens, padding included.
        scored: the number of positions with logits.
        length: the length of the longest row.
        branched: whether rows have branches, and so a mask.
    """

    positions: int
    scored: int
    length: int
    branched: bool = False


def activation_bytes(model: Dimensions, batch: Extent, checkpointing: bool = False, eager: bool = False) -> int:
    """The peak of the bytes of a micro-batch's activations and their gradients, without weights and their gradients.
    `eager`: attention keeps its probabilities; else it is fused."""
    # During the forward pass each layer keeps its activations; with checkpointing only its input.
    layer = batch.positions * _layer(model, batch, eager)
    stream = batch.positions * model.hidden * model.bytes
    kept = model.layers * (stream if checkpointing else layer)
    # On the way back, the peak is either in the head or in the last layer.
    logits = batch.scored * model.vocabulary
    head = batch.positions * _norm(model) + batch.scored * model.hidden * model.bytes
    head += 2 * logits * model.bytes + 3 * min(logits, CHUNK) * _FLOAT32
    within = (layer if checkpointing else 0) + 2 * stream + batch.positions * model.intermediate * model.bytes
    return int(_MARGIN * (kept + max(head, within)))


def _layer(model: Dimensions, batch: Extent, eager: bool) -> int:
    """Bytes that a layer saves for a position: both norms; queries, keys, values (repeated for all heads), attention's
    output and its transpose; four tensors of a gated feed-forward layer."""
    if eager:
        attention = model.heads * batch.length * (_FLOAT32 + model.bytes * (model.bytes < _FLOAT32))
    else:
        attention = model.heads * _FLOAT32 + batch.length * batch.branched * model.bytes
    return 2 * _norm(model) + (5 * model.hidden + 4 * model.intermediate) * model.bytes + attention


def _norm(model: Dimensions) -> int:
    """Bytes that a norm saves for a position: its input in float32, the normed input, and its output."""
    return model.hidden * (_FLOAT32 + 2 * model.bytes)


def _first(config: Mapping[str, Any], *keys: str) -> int:
    value = next((config[key] for key in keys if config.get(key) is not None), None)
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(number, int | float) for number in numbers):
        raise KeyError(" or ".join(keys))
    return int(max(numbers))
