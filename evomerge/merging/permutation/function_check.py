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

MOST = 200_000_000
"""Elements of a model that is run: in float64 it takes 1.6 GB."""
_SECONDS = 300.0
_ROWS, _LENGTH = 2, 16


def function_change(config: Mapping[str, Any], weights: Weights, permuted: Callable[[str], Tensor]) -> float | None:
    """The largest difference between the log-probabilities of a model and of its permuted self, on random tokens, in
    float64 where it can be. None where transformers cannot run it."""
    if not isinstance(config.get("model_type"), str):
        return None
    vocabulary = text_config(config).get("vocab_size")
    if not isinstance(vocabulary, int):
        return None
    tokens = torch.randint(vocabulary, (_ROWS, _LENGTH), generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32):  # fused experts have no kernel of 64 bits
        before = _log_probabilities(config, {name: weights[name].to(dtype) for name in weights}, tokens, dtype)
        if before is not None:
            after = _log_probabilities(config, {name: permuted(name).to(dtype) for name in weights}, tokens, dtype)
            return None if after is None else float((before - after).abs().max())
    return None


def _log_probabilities(
    config: Mapping[str, Any], state: dict[str, Tensor], tokens: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """None where transformers cannot run the model."""
    settings = {k: v for k, v in config.items() if k not in ("quantization_config", "dtype", "torch_dtype")}
    with quiet():
        try:
            kind = model_class(config)
            if kind is None:
                return None
            with TimeLimit(_SECONDS), torch.no_grad():
                model = kind.from_pretrained(None, config=model_config(settings), state_dict=state, dtype=dtype).eval()
                logits: Tensor = model(tokens).logits
                return logits.log_softmax(-1)
        except (Exception, OutOfTime):  # a configuration can make transformers fail with anything
            return None
