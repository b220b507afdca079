"""Reads the place of a tensor in a model from its name: before the layer stack, in layer i, or after it.

The stack is the numbered prefix that agrees with the configuration's number of layers: ``model.layers.N.`` (Llama,
Qwen, Mistral, Gemma), ``transformer.h.N.`` (GPT-2), ``gpt_neox.layers.N.``, ``model.decoder.layers.N.`` (OPT), ...
Without a configured number, as for plain state dicts, it is the commonest numbered prefix: ``blocks.N.``, ``net.N.``
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Place = Literal["before", "after"] | int

LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
LISTED_LAYERS = ("layers_block_type", "layer_types")
DECODER_KEYS = ("num_decoder_layers", "decoder_layers")
"""Of models with an encoder beside the decoder, in which `LAYER_KEYS` count the encoder's layers."""
_EMBEDDING = re.compile(r"(^|[._])(embed|emb|embd|wte|wpe)|project_in|embeddings?([._]|$)")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.")
_TOKENS = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|tokens_embed|(backbone|rwkv)\.embeddings)\.weight$"
    r"|^(model\.)?shared\.weight$"
)
_NO_NUMBER = (-1,)
_DERIVED = re.compile(r"\.(inv_freq|masked_bias)$")


@dataclass(frozen=True)
class Stack:
    """A model's layer stack: the prefix before the layer number, and the number of layers. `numbers`: the layers'
    numbers, if these have gaps, as in ``net.0, net.2, net.4``."""

    prefix: str
    layers: int
    numbers: tuple[int, ...] = ()

    def place(self, name: str) -> Place:
        """The place of the tensor `name`."""
        layer = self._layer(name)
        if layer is not None:
            return layer
        if self.behind(name) is not None:
            return "after"
        return "before" if _EMBEDDING.search(name) and not _HEAD.search(name) else "after"

    def behind(self, name: str) -> tuple[int, str] | None:
        """The place of a tensor of a layer behind the stack, which the configuration counts apart (next-token
        prediction): 0 for the first such layer, and the rest of the name. None for any other tensor."""
        if self.numbers or not name.startswith(self._start):
            return None
        number, _, part = name[len(self._start) :].partition(".")
        if not number.isdecimal() or not part or int(number) < self.layers:
            return None
        return int(number) - self.layers, part

    def _layer(self, name: str) -> int | None:
        if not name.startswith(self._start):
            return None
        head = name[len(self._start) :].split(".", 1)[0]
        if not head.isdecimal():
            return None
        if self.numbers:
            return self.numbers.index(int(head)) if int(head) in self.numbers else None
        return int(head) if int(head) < self.layers else None

    @property
    def _start(self) -> str:
        return f"{self.prefix}." if self.prefix else ""

    def part(self, name: str) -> str:
        """The rest of a name behind the layer number: ``self_attn.q_proj.weight``."""
        return name[len(self._start) :].split(".", 1)[1]

    def name(self, layer: int, part: str) -> str:
        """The name of a layer's tensor, the inverse of `place` and `part`."""
        return f"{self._start}{self.numbers[layer] if self.numbers else layer}.{part}"


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that describes the language model."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def with_text_config(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with some settings of the language model replaced, in `text_config` and outside of it."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return {**config, **settings}
    outer = {key: value for key, value in settings.items() if key in config}
    return {**config, **outer, "text_config": {**inner, **settings}}


def configured_layers(config: Mapping[str, Any]) -> int | None:
    """The number of layers in a configuration, under any of its usual keys; a decoder's, if it has an encoder."""
    return next(iter(layer_counts(config)), None)


def layer_counts(config: Mapping[str, Any]) -> list[int]:
    """All numbers of layers in a configuration, the language model's first; else the length of a list of kinds."""
    text = text_config(config)
    counts = [int(text[k]) for k in (*DECODER_KEYS, *LAYER_KEYS) if isinstance(text.get(k), int) and text[k] > 0]
    listed = (text[key] for key in LISTED_LAYERS if isinstance(text.get(key), list))
    return list(dict.fromkeys(counts)) or [len(kinds) for kinds in listed if kinds]


def find_stack(names: Iterable[str], layers: int | None) -> Stack | None:
    """The layer stack among tensor names: the outermost numbered prefix that has all of the `layers` numbers, or None.

    With `layers` None it is the prefix with most numbers. If several have as many (the stages of a residual network),
    or none has two, all tensors together are one layer without a number.
    """
    numbers: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdecimal():
                numbers.setdefault(".".join(parts[:i]), set()).add(int(part))
                break  # numbers inside a layer (experts) are not the stack's
    if layers is None:
        return _commonest(numbers)
    fitting = [p for p, found in numbers.items() if len(found) >= layers and found.issuperset(range(layers))]
    # Besides the text stack a multimodal checkpoint may have others with as many layers: an exact fit wins.
    fitting.sort(key=lambda p: (len(numbers[p]) != layers, "vision" in p, len(p), p))
    return Stack(fitting[0], layers) if fitting else None


def _commonest(numbers: Mapping[str, set[int]]) -> Stack:
    """The stack of the prefix with most numbers."""
    most = max(map(len, numbers.values()), default=0)
    best = [prefix for prefix, of_prefix in numbers.items() if len(of_prefix) == most]
    if len(best) > 1 or most < 2:
        return Stack("", 1, _NO_NUMBER)
    layers = tuple(sorted(numbers[best[0]]))
    return Stack(best[0], most, () if layers == tuple(range(most)) else layers)


def is_head(name: str) -> bool:
    """Whether the tensor is the output head, which a model with tied embeddings shares with its embeddings."""
    return bool(_HEAD.search(name)) and name.endswith("weight")


def is_embedding(name: str) -> bool:
    """Whether the tensor is the token embedding matrix."""
    return bool(_TOKENS.search(name))


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether the tensor is a weight matrix, or a stack of them [matrices, rows, columns] (fused experts), between
    hidden states: no vector, no embedding of any kind, no output head."""
    matrices = len(shape) in (2, 3) and min(shape) > 0 and min(shape[-2:]) > 1
    return matrices and not is_head(name) and not _EMBEDDING.search(name)


def is_counter(name: str) -> bool:
    """Whether the tensor counts training steps (of batch normalisation) and decides nothing afterwards."""
    return name.endswith("num_batches_tracked")


def is_derived(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the tensor is a buffer that a model computes by itself (rotary frequencies, causal masks);
    some old checkpoints store them, and nothing reads them."""
    causal_mask = name.endswith(("attn.bias", "attention.bias")) and len(shape) == 4
    return bool(_DERIVED.search(name)) or causal_mask
