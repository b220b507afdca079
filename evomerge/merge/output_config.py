"""The config.json of a merged model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.checkpoints.structure import configured_layers, layers_key, text_config

Taken = tuple[Mapping[str, Any], int, int]
"""A run of layers: the configuration of the model it comes from, its first layer, the number of layers."""


def output_config(donor: Mapping[str, Any], taken: Sequence[Taken], dtype: str, tied: bool) -> dict[str, Any]:
    """The donor's configuration with the output's dtype, layers and tying. Settings that list one entry for each layer
    (such as `layer_types`) follow the layers."""
    config: dict[str, Any] = copy.deepcopy(dict(donor))
    text = config["text_config"] if text_config(config) is not config else config
    for part in (config, text):
        part["torch_dtype" if "torch_dtype" in part and "dtype" not in part else "dtype"] = dtype
    if "tie_word_embeddings" in config or "tie_word_embeddings" in text or not tied:
        holder = text if "tie_word_embeddings" in text else config
        holder["tie_word_embeddings"] = tied
    layers = configured_layers(donor)
    for key, value in list(text.items()):
        if isinstance(value, list) and "layer" in key and len(value) == layers:
            text[key] = [text_config(c).get(key, value)[start + i] for c, start, n in taken for i in range(n)]
    text[layers_key(donor)] = sum(n for _, _, n in taken)
    return config
