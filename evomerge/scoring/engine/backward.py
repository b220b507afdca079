"""Functions of loglikelihoods, and their gradients by autograd: one micro-batch at a time, logits where they count."""

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
    """One addend of a sum: windows whose loglikelihoods it needs at once, and what it makes of them, [W] in float64 on
    the host, to a scalar."""

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
        """Compare the model's shortcuts with its ordinary call, where rows are longer than any compared before."""
        if lm.shortcuts.selection and not lm.shortcuts.proven(self._packed.layout(lm)):
            self._packed.score(lm)

    def value(self, lm: LanguageModel) -> Tensor:
        """The sum of the terms with the weights of now, a scalar."""
        layout = self._packed.layout(lm)
        parts = []
        for batch in layout.batches:
            found = forward.logits(lm.model, batch, lm.device, lm.shortcuts.selection)
            parts.append(loglikelihoods(found, batch.node.to(found.device), batch.target.to(found.device)).cpu())
        sums = _sums(layout, torch.cat(parts).double())
        values = torch.split(sums, [len(term.windows) for term in self._terms])
        return torch.stack([term.value(own) for term, own in zip(self._terms, values, strict=True)]).sum()


class Sum:
    """A sum of terms, cut into micro-batches once."""

    def __init__(self, terms: Sequence[Term]) -> None:
        # Longest first: little padding, and what is too large fails at once.
        self._terms = sorted(terms, key=lambda term: -max(len(window.tokens) for window in term.windows))
        self._kept: tuple[bool, list[MicroBatch]] | None = None

    def largest(self, lm: LanguageModel) -> Extent:
        """The micro-batch with most positions. Looks at no weights."""
        extents = (batch.extent(lm) for batch in self._cut(lm))
        return max(extents, key=lambda extent: (extent.positions, extent.scored), default=Extent(0, 0, 0))

    def value(self, lm: LanguageModel) -> float:
        """The sum with the weights of now. TrialError where a part is not finite."""
        with torch.no_grad():
            return sum(_finite(batch.value(lm)) for batch in self._micro_batches(lm))

    def backward(self, lm: LanguageModel, share: float, checkpointing: bool) -> float:
        """The same, where each micro-batch's part, times `share`, is backpropagated before the next one's forward pass.
        With `checkpointing` layers keep their inputs only (see `checkpointing`).

        Raises:
            TrialError: a part is not finite; it is not backpropagated, those before it were.
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
        """For the shortcuts that the model keeps once all of its micro-batches have been compared."""
        while True:
            batches = self._cut(lm)
            for batch in batches:
                batch.prove(lm)
            if batches is self._cut(lm):
                return batches

    def _cut(self, lm: LanguageModel) -> list[MicroBatch]:
        """The micro-batches; anew when trees have been given up since."""
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
    """Cut terms, longest first, into groups. One has at most the positions, padding included, that a batch of the
    longest of its windows would have, or it is a single term."""
    limits, size = lm.shortcuts.limits(lm.batch_size), 1

    def fits(group: Sequence[Term]) -> bool:
        windows = [window for term in group for window in term.windows]
        longest = max(len(window.tokens) for window in windows)
        room: int = lm.batch_size * longest
        return _positions(pack(windows, limits)) <= room

    while terms:
        # What shares prefixes takes less than its sum: try more than fitted last time, then less and less.
        size = min(2 * size, len(terms))
        while size > 1 and not fits(terms[:size]):
            size -= -(-size // 8)
        yield terms[:size]
        terms = terms[size:]


def _positions(rows: Sequence[Row]) -> int:
    """Of the rows with branches and of those without, padded to the longest."""
    kinds = [[len(row) for row in rows if row.branched == branched] for branched in (True, False)]
    return sum(len(lengths) * max(lengths, default=0) for lengths in kinds)


def _sums(layout: Layout, logs: Tensor) -> Tensor:
    """The sum over each window's pairs [W], of log-probabilities [M]."""
    own = [torch.from_numpy(pairs) for pairs in layout.pairs]
    owners = torch.arange(len(own)).repeat_interleave(torch.tensor([len(pairs) for pairs in own]))
    return logs.new_zeros(len(own)).index_add(0, owners, logs[torch.cat(own)])


def loglikelihoods(logits: Tensor, node: Tensor, target: Tensor) -> Tensor:
    """Natural-log probabilities [M] in float32 of distinct pairs: of logits [N, V], `node` [M] says which row, `target`
    [M] which token. Differentiable; beyond the logits and their gradient nothing of their size is held."""
    found: Tensor = _Loglikelihoods.apply(logits, node, target)  # type: ignore[no-untyped-call]
    return found


class _Loglikelihoods(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, node: Tensor, target: Tensor) -> Tensor:
        chunks = torch.split(logits, _step(logits))
        whole = torch.cat([chunk.float().logsumexp(-1) for chunk in chunks])
        found: Tensor = logits[node, target].float() - whole[node]
        ctx.save_for_backward(logits, node, target, whole, found)
        return found

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None, None]:
        """The derivative of log p(token) by the logits is onehot(token) - p."""
        (upstream,) = given
        logits, node, target, whole, found = ctx.saved_tensors
        # index_put_ adds in a fixed order, index_add_ does not on a GPU
        weight = torch.zeros_like(whole).index_put_((node,), upstream, accumulate=True)
        gradient, step = torch.empty_like(logits), _step(logits)
        for start in range(0, len(logits), step):
            rows = slice(start, start + step)
            shares = (logits[rows].float() - whole[rows, None]).exp_()
            gradient[rows] = shares.mul_(-weight[rows, None])
        gradient[node, target] = (upstream - weight[node] * found.exp()).to(gradient.dtype)
        return gradient, None, None


def _step(logits: Tensor) -> int:
    return max(1, CHUNK // logits.shape[1])
