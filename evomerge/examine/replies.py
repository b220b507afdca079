"""What several models write after the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """A prompt, and what each model writes after it: greedily, at most 64 tokens."""

    prompt: str
    models: Mapping[str, str]


def side_by_side(prompts: Sequence[str], written: Mapping[str, Sequence[str]]) -> tuple[Reply, ...]:
    """The replies by prompt: the base's first, then the sources', then the model's. `written`: by model, of each
    prompt."""
    parents = sorted(written, key=lambda name: 0 if name == "base" else 2 if name.startswith("the ") else 1)
    return tuple(Reply(text, {name: written[name][i] for name in parents}) for i, text in enumerate(prompts) if written)
