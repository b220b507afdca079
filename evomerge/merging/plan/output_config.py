"""The config.json of a merged model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from evomerge.checkpoints.structure import text_config
from evomerge.checkpoints.vocabulary import Vocabulary
from evomerge.merging.plan.layer_settings import LayerRun, follow_layers

__all__ = ["LayerRun", "follow_tokens", "output_config"]

_SIGHT = ("image", "video", "audio", "vision", "boi", "eoi", "boa", "eoa")
"""How the settings begin that name tokens of what is no text: without them a model cannot see or hear."""


def output_config(donor: Mapping[str, Any], runs: Sequence[LayerRun], dtype: str, tied: bool) -> dict[str, Any]:
    """The donor's configuration with the output's dtype, layers and tying.

    Settings on single layers (such as `layer_types`) follow the layers (`layer_settings`). No `runs`: the donor's
    layers. A configuration that is not one of transformers (it has no `model_type`) stays as it is.
    """
    config: dict[str, Any] = copy.deepcopy(dict(donor))
    if "model_type" not in config:
        return config
    text = config["text_config"] if text_config(config) is not config else config
    for part in (config, text):
        part["torch_dtype" if "torch_dtype" in part and "dtype" not in part else "dtype"] = dtype
    if "tie_word_embeddings" in config or "tie_word_embeddings" in text or not tied:
        holder = text if "tie_word_embeddings" in text else config
        holder["tie_word_embeddings"] = tied
    if runs:
        follow_layers(config, donor, runs)
    return config


def follow_tokens(settings: Mapping[str, Any], old: Vocabulary, new: Vocabulary) -> dict[str, Any]:
    """Settings (config.json, generation_config.json) with the token ids of the vocabulary `new` in place of those of
    `old`, under every key ``..._token_id`` or ``..._token_index``. A token that `new` lacks leaves a list, or becomes
    null."""
    changed = _changed(old, new)

    def renumber(value: Any) -> Any:
        if isinstance(value, list):
            return [i for i in map(renumber, value) if i is not None]
        return changed.get(value, value) if type(value) is int else value

    def follow(part: Mapping[str, Any]) -> dict[str, Any]:
        result = dict(part)
        for key, value in part.items():
            if isinstance(value, dict):
                result[key] = follow(value)
            elif (
                key.endswith(("_token_id", "_token_index"))
                and isinstance(value, int | list)
                and not isinstance(value, bool)
            ):
                result[key] = renumber(value)
        return result

    return follow(settings)


def lost_token(settings: Mapping[str, Any], old: Vocabulary, new: Vocabulary, before: int, rows: int) -> str | None:
    """What is wrong with the token of images or the like that the merged model would lose, if there is one: its
    tokenizer lacks the token, or the row, for which no tokenizer has a word, is behind its last one.

    Args:
        settings: the donor's configuration.
        before, rows: the rows of the donor's embeddings, and of the output's.
    """
    words = {i: token for token, i in old.tokens.items()}
    for key, value in settings.items():
        if isinstance(value, dict):
            lost = lost_token(value, old, new, before, rows)
            if lost is not None:
                return lost
        elif key.startswith(_SIGHT) and key.endswith(("_token_id", "_token_index")) and type(value) is int:
            if value in words and words[value] not in new.tokens:
                return f"the output's tokenizer lacks {words[value]!r}, which {key} in config.json stands for"
            if value not in words and rows <= value < before:
                problem = f"{key} in config.json is {value}, a row that the tokenizer has no word for"
                return f"{problem}, and the merged model has {rows} rows"
    return None


@lru_cache(maxsize=8)
def _changed(old: Vocabulary, new: Vocabulary) -> dict[int, int | None]:
    """Old id -> new id, or None where `new` lacks the token. Ids that stay the same are left out."""
    ids = new.tokens
    return {i: ids.get(token) for token, i in old.tokens.items() if ids.get(token) != i}
