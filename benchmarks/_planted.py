"""Variants of a fine-tune whose conflict with another one is known, as state dicts of Llama's names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def scaled(base: State, source: State, factor: float) -> State:
    """The base with `factor` times the source's delta."""
    return {name: base[name] + factor * (source[name] - base[name]) for name in base}


def opposed(base: State, source: State, other: State, share: float, seed: int) -> State:
    """The source, with a `share` of its delta's elements turned against those of the other source's delta."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name in base:
        delta, against = source[name] - base[name], other[name] - base[name]
        turned = torch.rand(delta.shape, generator=random) < share
        state[name] = base[name] + torch.where(turned, -against.sign() * delta.abs(), delta)
    return state


def permuted(source: State, layers: Collection[int] | None, seed: int) -> State:
    """The source with the hidden units of its MLPs in another order, in some layers or in all: the same function."""
    state, orders = dict(source), dict[int, Tensor]()
    random = torch.Generator().manual_seed(seed)
    for name, tensor in source.items():
        found = _LAYER.search(name)
        layer = int(found[1]) if found else -1
        if found is None or ".mlp." not in name or (layers is not None and layer not in layers):
            continue
        units = tensor.shape[1 if "down_proj" in name else 0]
        order = orders.setdefault(layer, torch.randperm(units, generator=random))
        state[name] = tensor[:, order] if "down_proj" in name else tensor[order]
    return {name: tensor.contiguous() for name, tensor in state.items()}


def shuffled(source: State, seed: int) -> State:
    """The source with its residual stream in another order, and all MLPs: the same function, and nothing in common with
    any other model, as if it had been trained from another start."""
    state = dict(permuted(source, None, seed))
    width = state["model.norm.weight"].shape[0]
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed + 1))
    for name, tensor in state.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")) or tensor.dim() == 1:
            state[name] = tensor[order]
        else:  # embeddings, heads, and all that reads the stream
            state[name] = tensor[:, order]
    return {name: tensor.contiguous() for name, tensor in state.items()}
