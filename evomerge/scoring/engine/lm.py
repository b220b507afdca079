"""What the engine needs of a language model; `engine.resident` has the one that it gets."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from evomerge.scoring.engine.shortcuts import Shortcuts


class LanguageModel(Protocol):
    """A model whose weights change between calls, behind lm-eval's interface.

    Attributes:
        model: the transformers model.
        device: where its inputs go.
        backend: lm-eval's word for its kind, such as "causal".
        batch_size: how many sequences of the longest length a batch may hold.
        shortcuts: the shortcuts that it allows.
    """

    @property
    def model(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def backend(self) -> str: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def shortcuts(self) -> Shortcuts: ...
