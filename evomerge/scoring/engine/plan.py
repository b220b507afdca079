"""Loglikelihood requests, prepared once, and answered with the weights of now."""

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
    """Windows, laid out once for the shortcuts that the model is given."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = list(windows)
        self._kept: tuple[bool, Layout] | None = None

    def layout(self, lm: LanguageModel) -> Layout:
        """The batches; anew when trees have been given up since."""
        trees = lm.shortcuts.trees
        if self._kept is None or self._kept[0] != trees:
            rows = pack(self.windows, lm.shortcuts.limits(lm.batch_size))
            self._kept = trees, lay_out(self.windows, rows, lm.batch_size)
        return self._kept[1]

    def score(self, lm: LanguageModel) -> tuple[NDArray[np.float64], NDArray[np.bool_]] | None:
        """Each window's loglikelihood and whether all of its tokens are the most probable ones, with the weights of
        now; None where the model may not be given any shortcut."""
        while lm.shortcuts.selection:
            layout = self.layout(lm)
            try:
                logs, greedy = score(lm.model, layout.batches, lm.device)
            except Exception as error:
                lm.shortcuts.refuse(layout, error)
                continue
            found = _sums(layout.pairs, logs)
            if lm.shortcuts.accept(layout, self.windows, found, partial(plain, lm.model, lm.device)):
                return found, _sums(layout.pairs, ~greedy) == 0
        return None


class Plan:
    """Requests of one kind, in order. `tokens`: how many tokens of each are scored.

    Requests with equal arguments are one; its loglikelihood is the sum over its windows.
    """

    def __init__(self, lm: LanguageModel, kind: str, requests: Sequence[Any]) -> None:
        self.kind, self.requests = kind, list(requests)
        numbers: dict[Any, int] = {}
        self._order = [numbers.setdefault(request.args, len(numbers)) for request in requests]
        windows = encode(lm, kind, list(numbers))
        sizes = [sum(len(window.targets) for window in own) for own in windows]
        self.tokens = [sizes[number] for number in self._order]
        self._packed = Packed([window for own in windows for window in own])
        self._owners = np.repeat(np.arange(len(windows)), [len(own) for own in windows])

    def answer(self, lm: LanguageModel) -> list[Any]:
        """(loglikelihood, is_greedy) of each request, or its loglikelihood where the kind is loglikelihood_rolling."""
        found = self._packed.score(lm)
        return self._answers(*found) if found is not None else list(getattr(lm, self.kind)(self.requests))

    def layout(self, lm: LanguageModel) -> Layout:
        return self._packed.layout(lm)

    def _answers(self, logs: NDArray[np.float64], greedy: NDArray[np.bool_]) -> list[Any]:
        n = max(self._order, default=-1) + 1
        totals = np.bincount(self._owners, weights=logs, minlength=n).tolist()
        if self.kind == "loglikelihood_rolling":
            return [totals[number] for number in self._order]
        flags = greedy.tolist()  # one window a request
        return [(totals[number], flags[number]) for number in self._order]


def _sums(pairs: Sequence[NDArray[np.int64]], values: NDArray[Any]) -> NDArray[np.float64]:
    """The sum over each window's pairs, one after the other in float64."""
    if not pairs:
        return np.empty(0)
    owners = np.repeat(np.arange(len(pairs)), [len(own) for own in pairs])
    return np.bincount(owners, values[np.concatenate(pairs)], len(pairs)).astype(np.float64)
