"""Decides about tensors that not all checkpoints of a merge store: prediction layers, value and score heads, copies of
tied parameters, buffers of older versions. A merge to disk and a search decide alike:

- A tensor that all checkpoints store is merged.
- One that the base stores, and not all others, is kept from the base if no layer needs it: the model does not read it,
  or it is (a part of) the head that stands on the model.
- One that the base does not store is left out if the models that store it do not read it.
- Anything else would lose a part of what a model has learned, and is refused.

What a model reads is known from transformers (`unread`). Of models that transformers does not know, the usual names of
prediction layers and value heads count as not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal

from evomerge.checkpoints.layouts.unread import keys_of, skeleton
from evomerge.checkpoints.structure import Stack

Role = Literal["unread", "tied", "head", "body"]
Fate = Literal["keep", "leave", "refuse"]

_USUAL = re.compile(r"(^|\.)(mtp|mtp_\w+|v_head|value_head|score|reward_head)\.|(^|\.)position_ids$")
_SHOWN = 3


def roles(config: Mapping[str, Any], named: Any, stack: Stack, names: Iterable[str]) -> dict[str, Role]:
    """What each of the stored tensors `names` is to the model of a configuration: not read; a copy of another, tied
    parameter; a part of its head, outside of the base model; or of the body.

    Args:
        config: the configuration of the checkpoint that stores them.
        named: the `architectures` of the merged model, as which it is loaded.
        stack: its layer stack.
    """
    told = {key: value for key, value in config.items() if key != "architectures"}
    found = _roles(json.dumps(told | ({"architectures": named} if named else {}), sort_keys=True), frozenset(names))
    if found is not None:
        return found
    return {name: "unread" if _USUAL.search(name) or stack.behind(name) else "body" for name in names}


@lru_cache(maxsize=64)
def _roles(config: str, names: frozenset[str]) -> dict[str, Role] | None:
    model = skeleton(json.loads(config))
    if model is None:
        return None
    tied = model.all_tied_weights_keys
    body = f"{model.base_model_prefix}." if model.base_model is not model else ""

    def role(key: str, read: bool) -> Role:
        if not read:
            return "unread"
        if key in tied:
            return "tied"
        return "body" if key.startswith(body) else "head"

    return {name: role(key, read) for name, (key, read) in keys_of(model, names).items()}


def fate(base: Role | None, others: Collection[Role]) -> Fate:
    """What happens to a tensor that not all checkpoints store. `base`: what it is to the base, None if that does not
    store it; `others`: what it is to the other checkpoints that store it."""
    if "tied" in (base, *others):
        return "leave"  # a copy of a tensor that is merged
    if base is not None:
        return "refuse" if base == "body" else "keep"
    return "leave" if all(role == "unread" for role in others) else "refuse"


def listed(names: Collection[str]) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more tensors" if len(names) > _SHOWN else ""
    return ", ".join(list(names)[:_SHOWN]) + more


def told(kept: Mapping[str, Iterable[str]], left: Mapping[str, Iterable[str]], base: str) -> list[str]:
    """A line for all tensors that are kept from the base as the same models lack them, and for all that are left out
    as the same models alone have them. `kept`, `left`: these models by tensor."""
    return [
        *(f"{listed(names)}: kept from {base}, as {models} lack{_s(models)} it" for models, names in _by_models(kept)),
        *(f"{listed(names)}: left out, as only {models} ha{'ve' if not _s(models) else 's'} it"
          for models, names in _by_models(left)),
    ]  # fmt: skip


def _by_models(tensors: Mapping[str, Iterable[str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for name, models in tensors.items():
        groups.setdefault(" and ".join(dict.fromkeys(models)), []).append(name)
    return list(groups.items())


def _s(models: str) -> str:
    return "" if " and " in models else "s"
