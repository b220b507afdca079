"""Finds the modules of a model with several layer stacks, such as a decoder beside an encoder or a vision tower.

Names are mergekit's (0.1.5, its architecture files): a model of one stack is `default`; otherwise there are
`text_decoder`, `vision_tower`, `audio_tower` and `multi_modal_projector`, or `decoder`, `encoder` and `shared` (tensors
of neither). A stack that fits none of these names has its prefix as name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints.structure import LAYER_KEYS, Stack

DEFAULT = "default"
ALIASES = {"vision_model": "vision_tower"}
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "encoder_layers", "decoder_layers",
               "num_encoder_layers", "num_decoder_layers", "num_global_layers", "conf_num_hidden_layers")  # fmt: skip
_WORDS = {"vision": "vision_tower", "visual": "vision_tower", "audio": "audio_tower", "encoder": "encoder"}
_PROJECTOR = re.compile(r"projector|connector|merger")
_Path = tuple[str, ...]


@dataclass(frozen=True)
class Modules:
    """The modules of one model.

    Attributes:
        stacks: the layer stack of each module, of no layers if it has none.
        keys: the path in the configuration to each module's number of layers.
        roots: the prefix of the names of each module's tensors.
        main: the module of the language model.
    """

    stacks: Mapping[str, Stack]
    keys: Mapping[str, _Path]
    roots: Mapping[str, str]
    main: str

    def of(self, name: str) -> str:
        """The module of a tensor."""
        if len(self.stacks) == 1:
            return self.main
        for module, stack in self.stacks.items():
            if stack.layers and isinstance(stack.place(name), int):
                return module
        if "multi_modal_projector" in self.stacks and _PROJECTOR.search(name):
            return "multi_modal_projector"
        modules = [module for module, root in self.roots.items() if name.startswith(f"{root}.")]
        return modules[0] if modules else "shared" if "shared" in self.stacks else self.main


def find_modules(names: Iterable[str], config: Mapping[str, Any], main: Stack) -> Modules:
    """The modules of a model whose text stack is `main`. Another stack is a numbered prefix without gaps, with a number
    of layers that the configuration holds."""
    listed = list(names)
    counted = dict(_counts(config))
    others = [s for s in _stacks(listed) if s.prefix != main.prefix and s.layers in counted.values()]
    if not others:
        return Modules({DEFAULT: main}, {}, {}, DEFAULT)
    stacks, encoder = dict[str, Stack](), False
    for stack in others:
        word = next((name for word, name in _WORDS.items() if word in stack.prefix), stack.prefix)
        stacks[word if word not in stacks else stack.prefix] = stack
        encoder |= word == "encoder"
    first = "decoder" if encoder else "text_decoder"
    stacks = {first: main, **stacks}
    roots = _roots(stacks)
    if encoder:
        stacks["shared"] = Stack("", 0)
    elif any(_PROJECTOR.search(name) for name in listed):
        stacks["multi_modal_projector"] = Stack("", 0)
    keys = {n: path for n, s in stacks.items() if (n != first or encoder) and (path := _key(s, counted))}
    return Modules(stacks, keys, roots, first)


def _stacks(names: Iterable[str]) -> list[Stack]:
    """The numbered prefixes without gaps."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if at is not None:
            numbers.setdefault(".".join(parts[:at]), set()).add(int(parts[at]))
    return [Stack(prefix, len(n)) for prefix, n in sorted(numbers.items()) if n == set(range(len(n)))]


def _counts(config: Mapping[str, Any], path: _Path = ()) -> Iterator[tuple[_Path, int]]:
    """The numbers of layers in a configuration, by their paths."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _counts(value, (*path, key))
        elif key in _LAYER_KEYS and isinstance(value, int):
            yield (*path, key), value


def _key(stack: Stack, counted: Mapping[_Path, int]) -> _Path | None:
    """The path in the configuration to the stack's number of layers; best one that shares a word with its prefix."""
    paths = [path for path, count in counted.items() if count == stack.layers]
    words = [word for word in ("vis", "audio", "encoder", "decoder") if word in stack.prefix]
    named = [path for path in paths if any(word in "_".join(path) for word in words)]
    nested = [path for path in paths if len(path) > 1 and path[0] != "text_config"]
    plain = [(key,) for key in LAYER_KEYS if (key,) in paths and words == ["encoder"]]  # T5
    return next(iter(named or nested or plain), None)


def _roots(stacks: Mapping[str, Stack]) -> dict[str, str]:
    """For each stack the shortest part of its prefix that no other stack shares."""
    roots = {}
    for name, stack in stacks.items():
        parts = stack.prefix.split(".")
        starts = [".".join(parts[: i + 1]) for i in range(len(parts))]
        others = [f"{other.prefix}." for key, other in stacks.items() if key != name]
        roots[name] = next((s for s in starts if not any(o.startswith(f"{s}.") for o in others)), stack.prefix)
    return roots
