"""Runs forward passes that compute logits only where they count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.scoring.engine.activations import CHUNK
from evomerge.scoring.engine.batches import Batch
from evomerge.scoring.engine.encode import Window

Scores = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Natural-log probability [M] of each pair's token, and whether it is the most probable one [M]."""


@torch.no_grad()
def score(model: Any, batches: Sequence[Batch], device: torch.device) -> Scores:
    """Scores the pairs of all batches, in order, with the current weights.

    Raises:
        ValueError: the model computes its logits elsewhere than in its output embeddings.
    """
    if not batches:
        return np.empty(0), np.empty(0, np.bool_)
    parts = [_score(model, batch, device) for batch in batches]
    logs, best = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return logs.astype(np.float64), best


def _score(model: Any, batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    scored = logits(model, batch, device)
    return _reduce(scored, batch.node.to(scored.device), batch.target.to(scored.device))


def logits(model: Any, batch: Batch, device: torch.device, selection: bool = True) -> Tensor:
    """The logits [N, V] of a batch's positions that count. Without `selection` the model computes all of them first.

    Raises:
        ValueError: the model computes its logits elsewhere than in its output embeddings.
    """
    inputs = {"input_ids": batch.tokens.to(device)}
    if batch.depths is not None and batch.ends is not None:
        inputs["position_ids"] = batch.depths.to(device)
        inputs["attention_mask"] = _mask(batch.ends.to(device), model)
    if not selection:
        every: Tensor = model(**inputs, use_cache=False).logits
        return every.flatten(0, 1)[batch.where.to(every.device)]
    with _only_at(model, batch.where):
        selected: Tensor = model(**inputs, use_cache=False).logits
    if selected.shape[:-1] != (1, len(batch.where)):
        raise ValueError("the logits are not those of the chosen positions")
    return selected[0]


@contextmanager
def _only_at(model: Any, where: Tensor) -> Iterator[None]:
    """Gives the model's head hidden states [1, N, H] instead of [B, L, H]. The steps behind it (scaling, soft-capping)
    work on each number by itself."""

    def select(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        return hidden.flatten(0, 1)[where.to(hidden.device)].unsqueeze(0), *rest

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def _mask(ends: Tensor, model: Any) -> Tensor:
    """Makes the mask [B, 1, L, L], in the form that the model's attention takes: node q sees its ancestors and
    itself."""
    nodes = torch.arange(ends.shape[1], device=ends.device)
    query, key = nodes[:, None], nodes[None, :]
    seen = ((key <= query) & (query < ends[:, None, :])) | (key == query)
    seen = seen[:, None]
    if model.config._attn_implementation == "sdpa":
        return seen
    hidden = torch.zeros(seen.shape, dtype=model.dtype, device=seen.device)
    return hidden.masked_fill_(~seen, torch.finfo(model.dtype).min)


def _reduce(logits: Tensor, node: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Reduces logits [N, V] to log-probabilities [M] (float32: lm-eval's `softmax_dtype=float32`) and greedy flags
    [M]."""
    step = max(1, CHUNK // logits.shape[1])
    order = node.argsort(stable=True)
    sizes = torch.bincount(node // step, minlength=-(-len(logits) // step)).tolist()
    logs = torch.empty(len(node), device=logits.device)
    best = torch.empty(len(node), dtype=torch.bool, device=logits.device)
    for chunk, pairs in zip(logits.split(step), order.split(sizes), strict=True):  # type: ignore[no-untyped-call]
        scores, row, token = chunk.float().log_softmax(-1), node[pairs] % step, target[pairs]
        own_logs = logs[pairs] = scores[row, token]
        best[pairs] = _first(scores, row, token, own_logs)
    return logs, best


def _first(scores: Tensor, row: Tensor, token: Tensor, logs: Tensor) -> Tensor:
    """Whether each pair's token is the first of the most probable ones [M]."""
    best = logs == scores.amax(-1)[row]
    best[best.clone()] = scores[row[best]].argmax(-1) == token[best]
    return best


@torch.no_grad()
def plain(model: Any, device: torch.device, window: Window) -> float:
    """Computes a window's loglikelihood by the model's ordinary call on it alone, with all logits."""
    tokens = torch.from_numpy(window.tokens).long().to(device)
    size = len(window.targets)
    logits = model(tokens[None]).logits[0, -size:].float()
    targets = torch.from_numpy(window.targets).long().to(logits.device)
    return float(logits.log_softmax(-1).gather(1, targets[:, None]).double().sum())
