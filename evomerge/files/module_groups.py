"""Ready-made module groups: `modules: [router, experts, attention]` without looking up how a family names its tensors.

A module is a substring of tensor names. Each group has the substrings that families use, and takes the first one that
the base has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from evomerge.errors import InputError
from evomerge.files.objects import SpaceSpec

READY_MADE = "auto"
"""Stands for the substring of a module that is ready-made."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "vision": ("vision_tower", "vision_model", "visual.", "vision_embedder"),
    "audio": ("audio_tower", "audio_model"),
    "projector": ("multi_modal_projector", "embed_vision", "connector", "projector"),
    "router": (".router.", "mlp.gate.", "block_sparse_moe.gate.", "feed_forward.gate.", "mixer.gate."),
    "shared_expert": ("shared_expert", "shared_mlp"),
    "experts": (".experts.", "block_sparse_moe.", "input_linear"),
    "attention": ("_attn.", ".attn.", "self_attention", ".attention."),
    "mamba": (".mamba.", ".mixer."),
    "mlp": (".mlp.", ".feed_forward.", ".ffn.", ".fc"),
    "norm": ("norm", ".ln_"),
    "embeddings": ("embed", "wte"),
}
"""Group -> substrings. A tensor belongs to the first module that it matches, so narrow groups stand before wide ones: a
list of names is brought into this order."""


def with_filters(spec: SpaceSpec, tensors: Collection[str]) -> SpaceSpec:
    """The spec with a substring for each ready-made group. InputError where the base has no such tensors.

    Args:
        tensors: the names of the base's tensors."""
    if READY_MADE not in spec.modules.values():
        return spec
    modules = {
        name: _filter(spec, name, tensors) if text == READY_MADE else text for name, text in spec.modules.items()
    }
    if all(text == READY_MADE for text in spec.modules.values()):
        modules = {name: modules[name] for name in GROUPS if name in modules}
    return replace(spec, modules=modules)


def _filter(spec: SpaceSpec, name: str, tensors: Collection[str]) -> str:
    found = next((text for text in GROUPS[name] if any(text in tensor for tensor in tensors)), None)
    if found is None:
        shown = " or ".join(GROUPS[name])
        problem = f"the base has no tensors of the group {name} (none has {shown} in its name)"
        raise InputError(problem, f"remove it, or give the part of the names yourself: {name}: ...", spec.at("modules"))
    return found
