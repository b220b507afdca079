"""Prepares loglikelihood requests once, and answers them with the current weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.scoring.engine.batches import Layout, lay_out
from evomerge.scoring.engine.encode import Window, encode
from evomerge.scoring.engine.forward import plain, score
from evomerge.scoring.engine.lm import LanguageModel
from evomerge.scoring.engine.tree import pack


class Packed:
    """Scores windows, which are laid out once for the shortcuts that the model allows."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = list(windows)
        self._kept: tuple[bool, Layout] | None = None

    def layout(self, lm: LanguageModel) -> Layout:
        """The batches; laid out anew if the model has lost trees since."""
        trees = lm.shortcuts.trees
        if self._kept is None or self._kept[0] != trees:
            rows = pack(self.windows, lm.shortcuts.limits(lm.batch_size))
            self._kept = trees, lay_out(self.windows, rows, lm.batch_size)
        return self._kept[1]

    def score(self, lm: LanguageModel) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
        """Computes each window's loglikelihood, and whether all of its tokens are the most probable ones, with the
        current weights; None where the model allows no shortcut."""
        while lm.shortcuts.selection:
            layout = self.layout(lm)
            try:
                logs, greedy = score(lm.model, layout.batches, lm.device)
            except Exception as error:
                lm.shortcuts.refuse(layout, error)
                continue
            lls = _sums(layout.pairs, logs)
            if lm.shortcuts.accept(layout, self.windows, lls, partial(plain, lm.model, lm.device)):
                return lls, _sums(layout.pairs, ~greedy) == 0
        return None


class Plan:
    """Answers requests of one kind, in order. Requests with equal arguments are scored once.

    Attributes:
        kind: lm-eval's request type.
        requests: lm-eval's instances.
        tokens: how many tokens of each are scored.
        n_read: how many tokens are read for all of them.
    """

    def __init__(self, lm: LanguageModel, kind: str, requests: Sequence[Any]) -> None:
        self.kind, self.requests = kind, list(requests)
        numbers: dict[Any, int] = {}
        self._order = [numbers.setdefault(request.args, len(numbers)) for request in requests]
        windows = encode(lm, kind, list(numbers))
        sizes = [sum(len(window.targets) for window in request) for request in windows]
        self.tokens = [sizes[number] for number in self._order]
        self._packed = Packed([window for request in windows for window in request])
        self.n_read = sum(len(window.tokens) for window in self._packed.windows)
        self._owners = np.repeat(np.arange(len(windows)), [len(request) for request in windows])

    def answer(self, lm: LanguageModel) -> list[Any]:
        """(loglikelihood, is_greedy) of each request, or its loglikelihood where the kind is loglikelihood_rolling."""
        scores = self._packed.score(lm)
        return self._answers(*scores) if scores is not None else list(getattr(lm, self.kind)(self.requests))

    def layout(self, lm: LanguageModel) -> Layout:
        return self._packed.layout(lm)

    @property
    def longest(self) -> int:
        """The most tokens that are read at once."""
        return max((len(window.tokens) for window in self._packed.windows), default=0)

    def _answers(self, logs: NDArray[np.float64], greedy: NDArray[np.bool_]) -> list[Any]:
        n = max(self._order, default=-1) + 1
        totals = np.bincount(self._owners, weights=logs, minlength=n).tolist()
        if self.kind == "loglikelihood_rolling":
            return [totals[number] for number in self._order]
        flags = greedy.tolist()  # one window a request
        return [(totals[number], flags[number]) for number in self._order]


def _sums(pairs: Sequence[NDArray[np.int64]], values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums values over each window's pairs, one after the other in float64."""
    if not pairs:
        return np.empty(0)
    owners = np.repeat(np.arange(len(pairs)), [len(numbers) for numbers in pairs])
    return np.bincount(owners, values[np.concatenate(pairs)], len(pairs)).astype(np.float64)
