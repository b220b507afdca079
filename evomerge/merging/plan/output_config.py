"""The config.json of a merged model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from evomerge.checkpoints.structure import configured_layers, layers_key, text_config
from evomerge.checkpoints.vocabulary import Vocabulary

Taken = tuple[Mapping[str, Any], int, int]
"""A run of layers: the configuration of the model it comes from, its first layer, the number of layers."""


def output_config(donor: Mapping[str, Any], taken: Sequence[Taken], dtype: str, tied: bool) -> dict[str, Any]:
    """The donor's configuration with the output's dtype, layers and tying. Settings that list one entry for each layer
    (such as `layer_types`) follow the layers. Nothing `taken`: the donor's layers. What is no configuration of
    transformers (it has no `model_type`) stays as it is."""
    config: dict[str, Any] = copy.deepcopy(dict(donor))
    if "model_type" not in config:
        return config
    text = config["text_config"] if text_config(config) is not config else config
    for part in (config, text):
        part["torch_dtype" if "torch_dtype" in part and "dtype" not in part else "dtype"] = dtype
    if "tie_word_embeddings" in config or "tie_word_embeddings" in text or not tied:
        holder = text if "tie_word_embeddings" in text else config
        holder["tie_word_embeddings"] = tied
    if taken:
        _set_layers(text, donor, taken)
    return config


def _set_layers(text: dict[str, Any], donor: Mapping[str, Any], taken: Sequence[Taken]) -> None:
    layers = configured_layers(donor)
    for key, value in list(text.items()):
        if isinstance(value, list) and "layer" in key and len(value) == layers:
            text[key] = [text_config(c).get(key, value)[start + i] for c, start, n in taken for i in range(n)]
    text[layers_key(donor)] = sum(n for _, _, n in taken)


def set_rows(config: dict[str, Any], rows: int) -> None:
    """Set the size of the vocabulary, wherever the configuration tells it."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and "vocab_size" in part:
            part["vocab_size"] = rows


def follow_tokens(settings: Mapping[str, Any], old: Vocabulary, new: Vocabulary) -> dict[str, Any]:
    """Settings (config.json, generation_config.json) in which every ``..._token_id`` of the vocabulary `old` has the id
    that its token has in `new`. A token that `new` lacks is left out: of a list, or as null."""
    changed = _changed(old, new)

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [i for i in map(moved, value) if i is not None]
        return changed.get(value, value)

    def follow(part: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(part)
        for key, value in part.items():
            if isinstance(value, dict):
                found[key] = follow(value)
            elif key.endswith("_token_id") and isinstance(value, int | list) and not isinstance(value, bool):
                found[key] = moved(value)
        return found

    return follow(settings)


@lru_cache(maxsize=8)
def _changed(old: Vocabulary, new: Vocabulary) -> dict[int, int | None]:
    """The ids of tokens that have another one, or none, in `new`."""
    ids = new.tokens
    return {i: ids.get(token) for token, i in old.tokens.items() if ids.get(token) != i}
