"""Where a tensor stands in a model, read from its name: before the layer stack, in layer i, or after it.

The stack is the numbered prefix that agrees with the configuration's number of layers: ``model.layers.N.`` (Llama,
Qwen, Mistral, Gemma), ``transformer.h.N.`` (GPT-2), ``gpt_neox.layers.N.``, ``model.decoder.layers.N.`` (OPT), ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Place = Literal["before", "after"] | int

_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EMBEDDING = re.compile(r"(^|[._])(embed|emb|embd|wte|wpe)|project_in|embeddings?([._]|$)")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.")
_DERIVED = re.compile(r"\.(inv_freq|masked_bias)$")


@dataclass(frozen=True)
class Stack:
    """A model's layer stack: the name that stands before the layer number, and the number of layers."""

    prefix: str
    layers: int

    def place(self, name: str) -> Place:
        """Where the tensor `name` stands."""
        number = self._number(name)
        if number is not None:
            return number
        return "before" if _EMBEDDING.search(name) and not _HEAD.search(name) else "after"

    def _number(self, name: str) -> int | None:
        if not name.startswith(f"{self.prefix}."):
            return None
        head = name[len(self.prefix) + 1 :].split(".", 1)[0]
        return int(head) if head.isdecimal() and int(head) < self.layers else None

    def part(self, name: str) -> str:
        """What follows the layer number: ``self_attn.q_proj.weight``."""
        return name[len(self.prefix) + 1 :].split(".", 1)[1]

    def name(self, layer: int, part: str) -> str:
        """The name of a layer's tensor, the inverse of `place` and `part`."""
        return f"{self.prefix}.{layer}.{part}"


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def with_text_config(config: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with some settings replaced, wherever it tells those of the language model."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return {**config, **told}
    outer = {key: value for key, value in told.items() if key in config}
    return {**config, **outer, "text_config": {**inner, **told}}


def configured_layers(config: Mapping[str, Any]) -> int | None:
    """The number of layers that a configuration tells, under any of its usual keys."""
    text = text_config(config)
    found = next((text[k] for k in _LAYER_KEYS if isinstance(text.get(k), int)), None)
    return found if found is None else int(found)


def layers_key(config: Mapping[str, Any]) -> str:
    """The key under which a configuration tells its number of layers."""
    return next((k for k in _LAYER_KEYS if k in text_config(config)), _LAYER_KEYS[0])


def find_stack(names: Iterable[str], layers: int | None) -> Stack | None:
    """The layer stack among tensor names: the outermost numbered prefix that has all of the `layers` numbers
    (where the configuration does not tell: the one with most). None where the names hold no such prefix."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdecimal():
                numbers.setdefault(".".join(parts[:i]), set()).add(int(part))
                break  # what is numbered inside a layer (experts) is not the stack
    if layers is None:
        best = max(numbers, key=lambda p: (len(numbers[p]), p), default=None)
        return None if best is None else Stack(best, max(numbers[best]) + 1)
    fitting = [p for p, found in numbers.items() if found.issuperset(range(layers))]
    # Besides the text stack a multimodal checkpoint may have others with as many layers: an exact fit wins.
    fitting.sort(key=lambda p: (len(numbers[p]) != layers, "vision" in p, len(p), p))
    return Stack(fitting[0], layers) if fitting else None


def is_head(name: str) -> bool:
    """Whether the tensor is the output head, which a model with tied embeddings shares with its embeddings."""
    return bool(_HEAD.search(name)) and name.endswith("weight")


def is_embedding(name: str) -> bool:
    """Whether the tensor is the token embedding matrix."""
    return bool(re.search(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$", name))


def is_derived(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor is a buffer that a model computes by itself (rotary frequencies, causal masks);
    some old checkpoints store them, and nothing reads them."""
    causal_mask = name.endswith(("attn.bias", "attention.bias")) and len(shape) == 4
    return bool(_DERIVED.search(name)) or causal_mask
