"""Reads the JSON settings of a checkpoint, and checks those that decide how large a model transformers would build.

Whatever else a configuration holds is copied into the merged checkpoint as it is, but for folders of a machine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.headers import TensorInfo
from evomerge.checkpoints.structure import LAYER_KEYS, is_embedding, is_head, text_config
from evomerge.errors import InputError, Where
from evomerge.escape import quoted
from evomerge.safety.read import read_object

CONFIG = "config.json"
_LARGEST = 64 << 20
"""Bytes of a file of settings. A configuration that lists a thousand classes has some 100 KB."""
_DEEPEST = 64
"""Settings are copied and compared by recursion, which ends at some hundred levels. Published ones have five."""
_COUNT = re.compile(r"(^|_)(layers?|experts?|heads?|labels?|blocks?|stages?|depth)(_(?!size|dim)|$)")
"""Keys of counts. A `block_size` is none: it is a number of tokens."""
_MOST = 10_000
"""Layers, experts, heads or labels that are plausible whatever the tensors are: each can be an object in memory."""
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
_PARTS = ("text_config", "vision_config", "audio_config", "id2label", "label2id")
_TAG = "__float__"
_TAGGED = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


_PLACES = re.compile(r"(name_or_path|_file)$")
"""Keys in which transformers keeps the folder that a model or a tokenizer was loaded from. It reads none of them."""
_OF_A_MACHINE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|file:")


class TaggedFloat(float):
    """A float that config.json writes as ``{"__float__": "Infinity"}``, as transformers 5 writes what JSON has no
    number for (Mamba 2, Bamba, Falcon-H1, Granite 4, Nemotron-H: `time_step_limit`). Older files hold ``Infinity``."""


def read_config(file: Path, where: Where | None = None) -> dict[str, Any]:
    """The configuration in a config.json, with numbers in place of transformers' tags. InputError as for
    `read_settings`."""
    settings: dict[str, Any] = _decoded(read_settings(file, where))
    return settings


def config_json(config: Mapping[str, Any]) -> str:
    """The text of a config.json. Numbers are written as they were read: with a tag, or plainly."""
    return json.dumps(_encoded(config), indent=2, ensure_ascii=False) + "\n"


def without_places(name: str, content: bytes) -> bytes:
    """The content of a file of settings, without the folders of a machine that it was saved in. Any other file, and one
    that names none, stays as it is."""
    if not name.endswith("config.json"):
        return content
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError):
        return content
    kept = _placeless(settings)
    return content if kept == settings else (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


def _placeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _placeless(v) for k, v in value.items() if not _is_place(k, v)}
    return [_placeless(inner) for inner in value] if isinstance(value, list) else value


def _is_place(key: str, value: Any) -> bool:
    return isinstance(value, str) and bool(_PLACES.search(key)) and bool(_OF_A_MACHINE.match(value))


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TAG} and isinstance(value[_TAG], str) and value[_TAG] in _TAGGED:
            return TaggedFloat(_TAGGED[value[_TAG]])
        return {key: _decoded(inner) for key, inner in value.items()}
    return [_decoded(inner) for inner in value] if isinstance(value, list) else value


def _encoded(value: Any) -> Any:
    if isinstance(value, TaggedFloat):
        return {_TAG: next(tag for tag, number in _TAGGED.items() if repr(number) == repr(value))}
    if isinstance(value, Mapping):
        return {key: _encoded(inner) for key, inner in value.items()}
    return [_encoded(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_settings(file: Path, where: Where | None = None) -> dict[str, Any]:
    """The JSON object in a file of settings. InputError as for `read_object`, or if it is nested too deep."""
    data = read_object(file, where, largest=_LARGEST)
    level, left = 0, [data]
    while left:
        level, left = level + 1, [inner for value in left for inner in _inside(value)]
        if level > _DEEPEST:
            problem = f"{file} is nested more than {_DEEPEST} levels deep"
            raise InputError(problem, "copy or download it again", where)
    return data


def _inside(value: Any) -> list[Any]:
    """The lists and mappings in a list or mapping."""
    values = value.values() if isinstance(value, dict) else value
    return [inner for inner in values if isinstance(inner, dict | list)]


def check_config(config: Mapping[str, Any], file: Path, stored: Mapping[str, TensorInfo], where: Where | None) -> None:
    """InputError if a configuration of transformers (one with a `model_type`) has settings of a wrong type, or counts
    that do not agree with the stored tensors. `file`: for messages."""
    if "model_type" not in config:
        return

    def wrong(key: str, value: Any, what: str) -> InputError:
        return InputError(f"{file}: {key} is {quoted(value)}, {what}", "correct it", where)

    if not isinstance(config["model_type"], str):
        raise wrong("model_type", config["model_type"], "not a text")
    for key in _PARTS:
        if config.get(key) is not None and not isinstance(config[key], dict):
            raise wrong(key, config[key], "not a mapping")
    for part in (config, text_config(config)):
        if not isinstance(part.get("tie_word_embeddings"), bool | None):
            raise wrong("tie_word_embeddings", part["tie_word_embeddings"], "not true or false")
        for key in (*LAYER_KEYS, *_LENGTHS, "vocab_size"):
            if part.get(key) is not None and (type(part[key]) is not int or not 0 < part[key] < 2**31):
                raise wrong(key, part[key], "not a whole number from 1 to 2147483647")
    # The embeddings may have more rows than there are tokens to predict (Mllama's): one of the two must agree.
    rows = [info.shape[:1] for name, info in stored.items() if is_embedding(name) or is_head(name)]
    vocabulary = text_config(config).get("vocab_size", config.get("vocab_size"))
    if rows and vocabulary is not None and (vocabulary,) not in rows:
        found = f"but its token embeddings have {rows[0][0] if rows[0] else 'no'} rows"
        raise wrong("vocab_size", vocabulary, found)
    most = max(_MOST, len(stored), *(n for info in stored.values() for n in info.shape))
    for key, value in _numbers(config):
        if value > most and _COUNT.search(key):
            raise wrong(key, value, f"more than any of its tensors has ({most})")


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """All numbers of a configuration, with their keys."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield key, value
