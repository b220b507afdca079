"""Finds the tensors of a model that have a row for every token: embeddings, heads and their biases, in any family.

The model is built from its configuration on the meta device, and again with one token more. What has grown counts
tokens, and the dimension that has grown is the one that does. Of a model that transformers does not know, names tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from evomerge.checkpoints.layouts.unread import keys_of, skeleton
from evomerge.checkpoints.structure import is_embedding, is_head, text_config


def vocabulary_axes(config: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, int]:
    """The dimension that counts tokens, for each of the stored tensors `names` that has one."""
    return _axes(json.dumps(config, sort_keys=True), frozenset(names))


@lru_cache(maxsize=32)
def _axes(config: str, names: frozenset[str]) -> dict[str, int]:
    settings = json.loads(config)
    usual = {name: 0 for name in names if _is_usual(name)}
    rows, model = _rows(settings), skeleton(settings)
    larger = skeleton(with_rows(settings, rows + 1)) if model is not None and rows is not None else None
    if model is None or larger is None:
        return usual
    found, shapes = {}, {key: tensor.shape for key, tensor in larger.state_dict().items()}
    state = model.state_dict()
    for name, (key, read) in keys_of(model, names).items():
        grown = (
            [i for i, (n, m) in enumerate(zip(state[key].shape, shapes[key], strict=True)) if n != m] if read else []
        )
        if len(grown) == 1:
            found[name] = grown[0]
        elif not read and name in usual:
            found[name] = 0
    return found


def with_rows(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """A configuration with another size of the vocabulary, wherever it has it: for the whole model or its language
    model, and under further keys (`decoder_vocab_size`) that say the same number."""
    outer = dict(config)
    text = outer.get("text_config")
    parts = [outer]
    if isinstance(text, dict):
        outer["text_config"] = dict(text)
        parts.append(outer["text_config"])
    old = _rows(config)
    for part in parts:
        part.update({k: rows for k, v in part.items() if k == "vocab_size" or (k.endswith("_vocab_size") and v == old)})
    return outer


def _rows(config: Mapping[str, Any]) -> int | None:
    """The size of the vocabulary that a configuration says."""
    rows = text_config(config).get("vocab_size", config.get("vocab_size"))
    return rows if isinstance(rows, int) else None


def _is_usual(name: str) -> bool:
    """Whether a tensor has the name of an embedding matrix, a head, or a head's bias."""
    bias = name.endswith(".bias") and is_head(f"{name.removesuffix('.bias')}.weight")
    return is_embedding(name) or is_head(name) or bias
