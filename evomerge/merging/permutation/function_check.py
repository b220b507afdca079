"""Measures whether a permuted language model still computes what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from evomerge.checkpoints.layouts.unread import model_class, model_config, quiet
from evomerge.checkpoints.structure import text_config
from evomerge.merging.permutation.weights import Weights
from evomerge.safety.limits import OutOfTime, TimeLimit

_MOST = 200_000_000
"""Elements of a model that is run: in float64 it takes 1.6 GB."""
_SECONDS = 300.0
_ROWS, _LENGTH = 2, 16


def function_change(config: Mapping[str, Any], weights: Weights, permuted: Callable[[str], Tensor]) -> float | None:
    """The largest difference between the log-probabilities of a model and of its permuted self, on random tokens, in
    float64. None where that is not measured: the model is large, or transformers cannot run it."""
    if not isinstance(config.get("model_type"), str) or sum(w.numel() for w in weights.values()) > _MOST:
        return None
    vocabulary = text_config(config).get("vocab_size")
    if not isinstance(vocabulary, int):
        return None
    tokens = torch.randint(vocabulary, (_ROWS, _LENGTH), generator=torch.Generator().manual_seed(0))
    before = _log_probabilities(config, {name: weights[name] for name in weights}, tokens)
    after = _log_probabilities(config, {name: permuted(name) for name in weights}, tokens)
    if before is None or after is None:
        return None
    return float((before - after).abs().max())


def _log_probabilities(config: Mapping[str, Any], weights: dict[str, Tensor], tokens: Tensor) -> Tensor | None:
    with quiet():
        try:
            kind = model_class(config)
            if kind is None:
                return None
            with TimeLimit(_SECONDS), torch.no_grad():
                state = {name: tensor.double() for name, tensor in weights.items()}
                settings = {k: v for k, v in config.items() if k not in ("quantization_config", "dtype", "torch_dtype")}
                model = kind.from_pretrained(
                    None, config=model_config(settings), state_dict=state, dtype=torch.float64
                ).eval()
                logits: Tensor = model(tokens).logits
                return logits.log_softmax(-1)
        except (Exception, OutOfTime):  # a configuration can make transformers fail with anything
            return None
