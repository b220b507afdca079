"""Arcee Fusion: only the most important differences are merged (mergekit 0.1.5, merge_methods/arcee_fusion.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import dot, spans
from evomerge.merging.kernels.deltas import masked, values_at
from evomerge.merging.kernels.inputs import Blend, Inputs

_CHUNK = 1 << 18  # elements of the rows whose importance is computed at a time
_EPSILON = 1e-8  # added to probabilities (mergekit)


def arcee_fusion(inputs: Inputs) -> Blend:
    """The other model's value if its importance is at least the median plus 1.5 times the distance between the
    quartiles of all elements' importance, else the base's.

    An element's importance is its |delta| times the Kullback-Leibler divergence of its row's softmax from that of the
    base's row. All elements count: mergekit draws a random million of larger tensors.
    """
    importance = _importance(inputs).reshape(-1)
    mask = torch.empty_like(importance, dtype=torch.uint8)
    if inputs.count:
        torch.ge(importance, inputs.once("importance", lambda: _threshold(importance)), out=mask)
    return masked(inputs, [1.0], [mask], [1.0], elect=False, normalize=False, lambda_=1.0)


def _importance(inputs: Inputs) -> Tensor:
    """The importance of each element, in the tensor's shape. A row lies along the last dimension."""
    width = max(1, inputs.shape[-1])
    importance = inputs.delta(0).abs_().reshape(-1, width)
    models = [t.reshape(-1, width) for t in (inputs.theta(0), inputs.reference)]
    for span in spans(importance.shape[0], max(1, _CHUNK // width)):
        importance[span] *= _divergence(models[0][span], models[1][span])
    return importance.reshape(inputs.shape)


def _divergence(other: Tensor, base: Tensor) -> Tensor:
    """KL(p || q) = sum of p log(p / q) of each row, p the other model's softmax, q the base's: (rows, 1)."""
    p, q = (rows.softmax(dim=-1) + _EPSILON for rows in (other, base))
    logs = torch.log(p / q)
    if p.shape[0] == 1:  # a sum to one number is split by threads
        return torch.full_like(p[:, :1], dot(p, logs))
    return (p * logs).sum(dim=-1, keepdim=True)


def _threshold(importance: Tensor) -> float:
    """The median plus 1.5 (q3 - q1)."""
    last = importance.numel() - 1
    q1, median, q3 = values_at(importance, [int(q * last) for q in (0.25, 0.5, 0.75)])
    return float(median + 1.5 * (q3 - q1))
