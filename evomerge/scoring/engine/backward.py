"""Computes functions of loglikelihoods and their gradients by autograd, one micro-batch at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import TrialError
from evomerge.scoring.engine import forward
from evomerge.scoring.engine.activations import CHUNK, Extent
from evomerge.scoring.engine.batches import Layout
from evomerge.scoring.engine.checkpointing import checkpointed
from evomerge.scoring.engine.encode import Window
from evomerge.scoring.engine.lm import LanguageModel
from evomerge.scoring.engine.plan import Packed
from evomerge.scoring.engine.tree import Row, pack


@dataclass(frozen=True, eq=False)
class Term:
    """One addend of a sum.

    Attributes:
        windows: the W windows whose loglikelihoods it needs at once.
        value: turns their loglikelihoods, [W] in float64 on the host, into a scalar.
    """

    windows: Sequence[Window]
    value: Callable[[Tensor], Tensor]


class MicroBatch:
    """Terms whose graph and activations exist at the same time."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self._terms = list(terms)
        self._packed = Packed([window for term in terms for window in term.windows])

    def extent(self, lm: LanguageModel) -> Extent:
        batches = self._packed.layout(lm).batches
        return Extent(
            positions=sum(batch.tokens.numel() for batch in batches),
            scored=sum(len(batch.where) for batch in batches),
            length=max(batch.tokens.shape[1] for batch in batches),
            branched=any(batch.depths is not None for batch in batches),
        )

    def prove(self, lm: LanguageModel) -> None:
        """Compares the model's shortcuts with its ordinary call, where rows are longer than any compared before."""
        if lm.shortcuts.selection and not lm.shortcuts.proven(self._packed.layout(lm)):
            self._packed.score(lm)

    def value(self, lm: LanguageModel) -> Tensor:
        """The sum of the terms with the current weights, a scalar."""
        layout = self._packed.layout(lm)
        parts = []
        for batch in layout.batches:
            logits = forward.logits(lm.model, batch, lm.device, lm.shortcuts.selection)
            parts.append(loglikelihoods(logits, batch.node.to(logits.device), batch.target.to(logits.device)).cpu())
        sums = _sums(layout, torch.cat(parts).double())
        values = torch.split(sums, [len(term.windows) for term in self._terms])
        return torch.stack([term.value(lls) for term, lls in zip(self._terms, values, strict=True)]).sum()


class Sum:
    """A sum of terms, cut into micro-batches once."""

    def __init__(self, terms: Sequence[Term]) -> None:
        # Longest first: little padding, and what is too large fails at once.
        self._terms = sorted(terms, key=lambda term: -max(len(window.tokens) for window in term.windows))
        self._kept: tuple[bool, list[MicroBatch]] | None = None

    def largest(self, lm: LanguageModel) -> Extent:
        """The micro-batch with most positions. Reads no weights."""
        extents = (batch.extent(lm) for batch in self._cut(lm))
        return max(extents, key=lambda extent: (extent.positions, extent.scored), default=Extent(0, 0, 0))

    def value(self, lm: LanguageModel) -> float:
        """The sum with the current weights. TrialError where a part is not finite."""
        with torch.no_grad():
            return sum(_finite(batch.value(lm)) for batch in self._micro_batches(lm))

    def backward(self, lm: LanguageModel, share: float, checkpointing: bool) -> float:
        """Computes the sum and backpropagates each micro-batch's part, times `share`, before the next forward pass.
        With `checkpointing` layers keep their inputs only (see the module `checkpointing`).

        Raises:
            TrialError: a part is not finite. It is not backpropagated; earlier parts were.
        """
        total = 0.0
        batches = self._micro_batches(lm)
        with torch.enable_grad(), checkpointed(lm.model) if checkpointing else nullcontext():
            for batch in batches:
                part = batch.value(lm)
                total += _finite(part)
                torch.autograd.backward(part * share)
        return total

    def _micro_batches(self, lm: LanguageModel) -> list[MicroBatch]:
        """Cuts the sum, and cuts it again if comparing a micro-batch takes a shortcut from the model."""
        while True:
            batches = self._cut(lm)
            for batch in batches:
                batch.prove(lm)
            if batches is self._cut(lm):
                return batches

    def _cut(self, lm: LanguageModel) -> list[MicroBatch]:
        """The micro-batches; cut anew if the model has lost trees since."""
        trees = lm.shortcuts.trees
        if self._kept is None or self._kept[0] != trees:
            self._kept = trees, [MicroBatch(terms) for terms in grouped(self._terms, lm)]
        return self._kept[1]


def _finite(part: Tensor) -> float:
    value = float(part)
    if not math.isfinite(value):
        raise TrialError(f"the proxy loss is {value}")
    return value


def grouped(terms: Sequence[Term], lm: LanguageModel) -> Iterator[Sequence[Term]]:
    """Cuts terms, longest first, into groups. A group is a single term, or has at most as many positions (padding
    included) as a batch of its longest window."""
    limits, size = lm.shortcuts.limits(lm.batch_size), 1

    def fits(group: Sequence[Term]) -> bool:
        windows = [window for term in group for window in term.windows]
        longest = max(len(window.tokens) for window in windows)
        room: int = lm.batch_size * longest
        return _positions(pack(windows, limits)) <= room

    while terms:
        # Terms that share prefixes take less than their sum: try more than fitted last time, then less and less.
        size = min(2 * size, len(terms))
        while size > 1 and not fits(terms[:size]):
            size -= -(-size // 8)
        yield terms[:size]
        terms = terms[size:]


def _positions(rows: Sequence[Row]) -> int:
    """The number of positions, if rows with branches and rows without are each padded to the longest."""
    kinds = [[len(row) for row in rows if row.branched == branched] for branched in (True, False)]
    return sum(len(lengths) * max(lengths, default=0) for lengths in kinds)


def _sums(layout: Layout, logs: Tensor) -> Tensor:
    """Sums log-probabilities [M] over each window's pairs: [W]."""
    pairs = [torch.from_numpy(numbers) for numbers in layout.pairs]
    owners = torch.arange(len(pairs)).repeat_interleave(torch.tensor([len(numbers) for numbers in pairs]))
    return logs.new_zeros(len(pairs)).index_add(0, owners, logs[torch.cat(pairs)])


def loglikelihoods(logits: Tensor, node: Tensor, target: Tensor) -> Tensor:
    """Computes natural-log probabilities [M] in float32. Differentiable; needs no memory of the logits' size but for
    the logits and their gradient.

    Args:
        logits: [N, V].
        node: [M], the row of each pair. Pairs are distinct.
        target: [M], the token of each pair.
    """
    logs: Tensor = _Loglikelihoods.apply(logits, node, target)  # type: ignore[no-untyped-call]
    return logs


class _Loglikelihoods(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, node: Tensor, target: Tensor) -> Tensor:
        chunks = torch.split(logits, _step(logits))
        whole = torch.cat([chunk.float().logsumexp(-1) for chunk in chunks])
        logs: Tensor = logits[node, target].float() - whole[node]
        ctx.save_for_backward(logits, node, target, whole, logs)
        return logs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The derivative of log p(token) by the logits is onehot(token) - p."""
        (upstream,) = gradients
        logits, node, target, whole, logs = ctx.saved_tensors
        # index_put_ adds in a fixed order, index_add_ does not on a GPU
        weight = torch.zeros_like(whole).index_put_((node,), upstream, accumulate=True)
        gradient, step = torch.empty_like(logits), _step(logits)
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            shares = (logits[rows].float() - whole[rows, None]).exp_()
            gradient[rows] = shares.mul_(-weight[rows, None])
        gradient[node, target] = (upstream - weight[node] * logs.exp()).to(gradient.dtype)
        return gradient, None, None


def _step(logits: Tensor) -> int:
    return max(1, CHUNK // logits.shape[1])
