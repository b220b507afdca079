"""Makes the settings of a configuration follow the layers of a stack: their number, lists with an entry for each
layer (``layer_types``), lists of layer numbers (``mlp_only_layers``), and rules (``first_k_dense_replace``).

The steps, for a stack whose layer j is layer i of a model:

1. The number of layers is set, under the keys that have it.
2. Lists with an entry for each layer take the entry of layer i; lists of numbers hold j where they held i.
3. Rules that say by a number which layers are dense, or of which kind, get the number that says the same of the stack,
   where there is one.
4. transformers fills in the lists that it derives from other settings. Where they do not follow, they are written down.
5. Each layer of the stack, built by its configuration, must be of the kind that its original is; else it is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from evomerge.checkpoints.layouts.unread import model_config, quiet, skeleton
from evomerge.checkpoints.structure import (
    DECODER_KEYS,
    LAYER_KEYS,
    LISTED_LAYERS,
    configured_layers,
    find_stack,
    text_config,
)
from evomerge.errors import InputError

LayerRun = tuple[Mapping[str, Any], int, int]
"""Layers in a row: the configuration of their model, the first layer, the number of layers."""
_Origin = tuple[Mapping[str, Any], int]
"""The origin of a layer: the configuration of its model, and its number there."""

_PER_LAYER = re.compile(r"layer|^(intermediate_size|activation_sparsity_pattern|num_(attention|key_value)_heads)$")
_NUMBERS = frozenset({"mlp_only_layers", "moe_layers", "cross_attention_layers", "hybrid_layer_ids", "full_attn_idxs",
                      "attn_layer_indices", "subsample_layers", "rope_scaling_layers", "prompt_layers"})  # fmt: skip
_PREFIXES = ("first_k_dense_replace", "num_dense_layers")
_PERIODS = (("attn_layer_period", "attn_layer_offset"), ("expert_layer_period", "expert_layer_offset"))
_MEND = "keep the layers in their order and number, or stack a model without such a rule"
_ORDINAL = re.compile(r"layer_(idx|id|index|number|num)$|^(idx|training)$")


def follow_layers(config: dict[str, Any], donor: Mapping[str, Any], runs: Sequence[LayerRun]) -> None:
    """Set the layers of a configuration that so far is the donor's.

    Raises:
        InputError: the configuration cannot describe the stack.
    """
    text = config["text_config"] if text_config(config) is not config else config
    layers, origins = configured_layers(donor), [(of, start + i) for of, start, count in runs for i in range(count)]
    _set_number(text, donor, len(origins))
    moved = [i for _, i in origins] != list(range(layers or len(origins)))
    for key, value in list(text.items()):
        if _is_per_layer(key, value, layers):
            entries = [_entry(key, value, origin) for origin in origins]
            text[key] = "".join(entries) if isinstance(value, str) else entries
        elif moved and _is_numbers(key, value, layers):
            text[key] = [j for j, (of, i) in enumerate(origins) if i in (text_config(of).get(key) or ())]
    if moved and layers is not None:
        ruled = _set_rules(text, origins)
        _set_derived(config, text, layers, origins, ruled)
        _check_kinds(config, origins)


def _set_number(text: dict[str, Any], donor: Mapping[str, Any], count: int) -> None:
    """Set the number of layers. A configuration that tells of them under another name, or not at all, gets no key that
    it lacks, unless their number changes."""
    before = configured_layers(donor)
    keys = [key for key in DECODER_KEYS if key in text] or [key for key in LAYER_KEYS if key in text]
    for key in keys:
        if text[key] == before:
            text[key] = count
    listed = any(isinstance(text.get(key), list) for key in LISTED_LAYERS)
    if not keys and not listed and before is not None and before != count:
        text[LAYER_KEYS[0]] = count


def _is_per_layer(key: str, value: Any, layers: int | None) -> bool:
    """Whether a setting lists one entry for each layer. (Nemotron-H writes a letter for each.)"""
    if key == "hybrid_override_pattern":
        return isinstance(value, str) and len(value) == layers
    if not isinstance(value, list) or len(value) != layers or key in _NUMBERS or key.startswith("mtp_"):
        return False
    return bool(_PER_LAYER.search(key))


def _is_numbers(key: str, value: Any, layers: int | None) -> bool:
    """Whether a setting lists numbers of layers."""
    if not isinstance(value, list) or layers is None or not ("layer" in key or key in _NUMBERS):
        return False
    numbers = all(type(n) is int and 0 <= n < layers for n in value)
    return numbers and value == sorted(set(value)) and (key in _NUMBERS or len(value) != layers)


def _entry(key: str, default: Sequence[Any], origin: _Origin) -> Any:
    """The entry of a layer; that of `default` if its model lists none. InputError if it lists too few."""
    config, layer = origin
    entries = text_config(config).get(key, default)
    if not isinstance(entries, list | str) or len(entries) <= layer:
        problem = f"{key} in the config.json of a merged model does not list its {layer + 1} layers"
        raise InputError(problem, "mend the configuration, or merge fewer layers")
    return entries[layer]


def _set_rules(text: dict[str, Any], origins: Sequence[_Origin]) -> set[str]:
    """Set the numbers of rules, where a number says the same of the stack as the old one of the models. Returns the
    lists that this has set."""
    ruled = set()
    for key in _PREFIXES:
        if type(text.get(key)) is int:
            dense = [i < text_config(of).get(key, text[key]) for of, i in origins]
            if dense == sorted(dense, reverse=True):
                text[key] = sum(dense)
    if type(text.get("decoder_sparse_step")) is int and (
        text["decoder_sparse_step"] > 1 or text.get("mlp_only_layers")
    ):
        # Sparse is what is in no list, every so many layers: with a step of 1 the list alone can say it.
        text["mlp_only_layers"] = [j for j, (of, i) in enumerate(origins) if _is_dense(text_config(of), i)]
        text["decoder_sparse_step"] = 1
        ruled.add("mlp_only_layers")
    for period, offset in _PERIODS:
        if type(text.get(period)) is int and type(text.get(offset)) is int:
            special = [i % text_config(of)[period] == text_config(of)[offset] for of, i in origins]
            text[period], text[offset] = _rhythm(special) or (text[period], text[offset])
    return ruled


def _rhythm(flags: Sequence[bool]) -> tuple[int, int] | None:
    """The period and offset at which the flags are true, if they are so regularly."""
    numbers = range(len(flags))
    pairs = ((p, o) for p in range(1, len(flags) + 1) for o in range(p))
    return next(((p, o) for p, o in pairs if [j % p == o for j in numbers] == list(flags)), None)


def _is_dense(text: Mapping[str, Any], layer: int) -> bool:
    step = text.get("decoder_sparse_step") or 1
    return layer in (text.get("mlp_only_layers") or ()) or (layer + 1) % step != 0


def _set_derived(
    config: dict[str, Any], text: dict[str, Any], layers: int, origins: Sequence[_Origin], ruled: set[str]
) -> None:
    """Write down the lists that transformers derives from other settings, where they would not follow by themselves.
    `ruled`: lists that follow already."""
    filled = _filled(config)
    sources = {key: _filled(of) for key, of in _distinct(origins).items()}
    first = sources[id(origins[0][0])]
    if filled is None or first is None:
        return
    wanted: dict[str, list[Any]] = {}
    for key, value in first.items():
        if _is_per_layer(key, value, layers):
            lists = [(sources[id(of)] or {}).get(key) or value for of, _ in origins]
            wanted[key] = [entries[i] for entries, (_, i) in zip(lists, origins, strict=True) if i < len(entries)]
        elif _is_numbers(key, value, layers) and key not in ruled:
            wanted[key] = [j for j, (of, i) in enumerate(origins) if i in ((sources[id(of)] or {}).get(key) or ())]
    wrong = {key: entries for key, entries in wanted.items() if filled.get(key) != entries}
    if not wrong:
        return
    text.update(wrong)
    filled = _filled(config) or {}
    lost = next((key for key in wrong if filled.get(key) != wrong[key]), None)
    if lost is not None:
        raise InputError(f"the configuration cannot say {lost} of the stacked layers", _MEND)


def _distinct(origins: Sequence[_Origin]) -> dict[int, Mapping[str, Any]]:
    """The configurations that layers come from, by id."""
    return {id(of): of for of, _ in origins}


def _filled(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The settings of the language model with all that transformers fills in; None if it does not know the model."""
    return _filled_text(json.dumps(config))


@lru_cache(maxsize=64)
def _filled_text(text: str) -> Mapping[str, Any] | None:
    """`_filled` of a configuration as JSON: the next candidate asks about the same ones."""
    config = json.loads(text)
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        return None
    with quiet():
        try:
            return dict(text_config(model_config(config).to_dict()))
        except Exception:  # a configuration can make transformers fail with anything; building it says so
            return None


def _check_kinds(config: Mapping[str, Any], origins: Sequence[_Origin]) -> None:
    """InputError if a layer of the stack would be of another kind than the layer that it comes from."""
    named = {key: config[key] for key in ("architectures",) if key in config}
    stack = _kinds(config)
    models = {key: _kinds({**of, **named}) for key, of in _distinct(origins).items()}
    if stack is None or any(kinds is None for kinds in models.values()):
        return
    for j, (of, i) in enumerate(origins):
        kinds = models[id(of)] or []
        if j < len(stack) and i < len(kinds) and stack[j] != kinds[i]:
            problem = f"layer {j} of the stack would not be what it is as layer {i}: {_difference(kinds[i], stack[j])}"
            raise InputError(problem, _MEND)


def _kinds(config: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """For each layer what it consists of: its modules, with their classes, parameters and settings that are no numbers
    of the layer itself. None if transformers cannot build the model."""
    return _kinds_text(json.dumps(config))


@lru_cache(maxsize=64)
def _kinds_text(text: str) -> Sequence[Mapping[str, Any]] | None:
    """`_kinds` of a configuration as JSON."""
    config = json.loads(text)
    model, layers = skeleton(config), configured_layers(config)
    stack = None if model is None or layers is None else find_stack(model.state_dict(), layers)
    if model is None or stack is None:
        return None
    return [_kind(model.get_submodule(f"{stack.prefix}.{i}")) for i in range(stack.layers)]


def _kind(layer: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for path, module in layer.named_modules():
        parts[path or "layer"] = type(module).__name__
        for name, value in vars(module).items():
            if isinstance(value, bool | int | str | None) and not name.startswith("_") and not _ORDINAL.search(name):
                parts[f"{path}.{name}".lstrip(".")] = value
    for name, parameter in layer.named_parameters():
        parts[name] = list(parameter.shape)
    return parts


def _difference(was: Mapping[str, Any], becomes: Mapping[str, Any]) -> str:
    key = next(k for k in (*was, *becomes) if was.get(k) != becomes.get(k))
    return f"{key} {was.get(key, 'none')}, and not {becomes.get(key, 'none')}"
