"""What a backward pass keeps in memory, estimated from a configuration: pure numbers, nothing is loaded.

After Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv:2205.05198),
equations 1 and 2: the tensors that a layer saves, counted for gated layers without dropout as transformers runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints.structure import configured_layers, text_config

_MARGIN = 1.2
"""For what is too small to be counted: rotary tables, embeddings, what the allocator rounds up."""

_FLOAT32 = 4

CHUNK = 1 << 20
"""Logits that are reduced at a time: what this many take in float32 still lies in a processor's cache."""


@dataclass(frozen=True)
class Dimensions:
    """A transformer's sizes: widths of its residual stream and of its feed-forward layers (of all experts that a token
    meets), numbers of layers, of attention heads and of tokens in its vocabulary, and bytes of a number."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    bytes: int

    @classmethod
    def of(cls, config: Mapping[str, Any], bytes: int) -> Dimensions:
        """Out of a model's configuration, under the usual keys. KeyError where one is missing."""
        text = text_config(config)
        hidden = _first(text, "hidden_size", "n_embd", "d_model")
        wide = [key for key in ("intermediate_size", "n_inner", "ffn_dim") if text.get(key)]
        experts = int(text.get("num_experts_per_tok") or 1)
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
    """One micro-batch: positions, padding included; those of them whose logits are computed; the length of its longest
    row; and whether rows have branches, and so a mask."""

    positions: int
    scored: int
    length: int
    branched: bool = False


def activation_bytes(model: Dimensions, batch: Extent, checkpointing: bool = False, eager: bool = False) -> int:
    """The most bytes that a micro-batch's activations and their gradients take at one time; weights and their gradients
    come on top. `eager`: attention keeps its probabilities; else it is fused."""
    layer = batch.positions * _layer(model, batch, eager)
    stream = batch.positions * model.hidden * model.bytes
    kept = model.layers * (stream if checkpointing else layer)
    # Either the head is on its way back, or the last layer is.
    logits = batch.scored * model.vocabulary
    head = batch.positions * _norm(model) + batch.scored * model.hidden * model.bytes
    head += 2 * logits * model.bytes + 3 * min(logits, CHUNK) * _FLOAT32
    within = (layer if checkpointing else 0) + 2 * stream + batch.positions * model.intermediate * model.bytes
    return int(_MARGIN * (kept + max(head, within)))


def _layer(model: Dimensions, batch: Extent, eager: bool) -> int:
    """What a layer saves for a position: both norms; queries, keys, values (repeated for all heads), what attention
    gives and its transpose; four tensors of a gated feed-forward layer."""
    if eager:
        attention = model.heads * batch.length * (_FLOAT32 + model.bytes * (model.bytes < _FLOAT32))
    else:
        attention = model.heads * _FLOAT32 + batch.length * batch.branched * model.bytes
    return 2 * _norm(model) + (5 * model.hidden + 4 * model.intermediate) * model.bytes + attention


def _norm(model: Dimensions) -> int:
    """What a norm saves for a position: its input in float32, the normed input, and its output."""
    return model.hidden * (_FLOAT32 + 2 * model.bytes)


def _first(config: Mapping[str, Any], *keys: str) -> int:
    found = next((config[key] for key in keys if config.get(key) is not None), None)
    if found is None:
        raise KeyError(" or ".join(keys))
    return int(found)
