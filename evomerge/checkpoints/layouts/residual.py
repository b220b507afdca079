"""The tensors that write into the residual stream, by the families of transformers in which a layer is

    h -> h + f(norm(h)) + ...

with nothing else between f's output projections and the sum. There h -> w h before layer k, which a norm undoes inside
of f, is the same as f's output projections (and their biases) over w from layer k on, as the final norm undoes a factor
of the whole stream. A family that is not here is not exact, or nobody has compared it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from evomerge.checkpoints.structure import text_config

_GATED = ("o_proj", "down_proj")
_NEOX = ("attention.dense", "dense_4h_to_h")

WRITERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "granite", "olmo", "stablelm", "cohere", "glm",
         "smollm3", "qwen2_moe", "qwen3_moe", "olmoe"),
        _GATED,
    ),
    "mixtral": ("o_proj", "w2|down_proj"),
    "starcoder2": ("o_proj", "c_proj"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": _NEOX,
    "bloom": ("self_attention.dense", "dense_4h_to_h"),
    "falcon": ("self_attention.dense", "dense_4h_to_h"),
    "phi": ("self_attn.dense", "fc2"),
    "opt": ("out_proj", "fc2"),
    "gptj": ("out_proj", "fc_out"),
}  # fmt: skip
"""Model type -> parts of the tensors' names; `a|b`: the one that a checkpoint has."""

_AFTER = ("post_feedforward_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm", "post_feedforward_norm")
"""Norms on the outputs of attention or MLP."""

_PLAIN: Mapping[str, tuple[str, bool]] = {
    "opt": ("do_layer_norm_before", True),
    "bloom": ("apply_residual_connection_post_layernorm", False),
}
"""Model type -> a setting without whose value (the default) the sum is not plain."""


def writers(config: Mapping[str, Any], parts: Collection[str]) -> tuple[tuple[str, ...], str]:
    """Parts of the names of the tensors that write into the residual stream; or none, and why scales would not be
    exact. `parts`: the names of a layer's tensors, without what stands before them."""
    kind = text_config(config).get("model_type")
    normed = next((part for part in parts for norm in _AFTER if norm in part), None)
    if normed is not None:
        return (), f"{kind} has a norm on the output of attention or MLP ({normed}), which undoes a scale"
    if kind not in WRITERS:
        return (), f"scales are not known to be exact for {kind}"
    key, plain = _PLAIN.get(str(kind), ("", True))
    if key and bool(text_config(config).get(key, plain)) is not plain:
        return (), f"{kind} with {key} {str(not plain).lower()} has a norm on the sum"
    found = [next((name for name in names.split("|") if _has(parts, name)), None) for names in WRITERS[str(kind)]]
    if None in found:
        return (), f"a layer of this {kind} does not have {WRITERS[str(kind)][found.index(None)]}"
    return tuple(name for name in found if name is not None), ""


def _has(parts: Collection[str], name: str) -> bool:
    return any(name in part for part in parts)
