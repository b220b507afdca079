"""Decides which shortcuts a model allows: by its configuration, and by comparing with its ordinary call."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from evomerge.scoring.engine.batches import Layout
from evomerge.scoring.engine.encode import Window
from evomerge.scoring.engine.tree import Limits

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""How far, in nats, a window's loglikelihood may be from the ordinary call's in float32."""

ROUNDINGS = 32
"""The same in units of the dtype's epsilon, times the square root of the number of tokens. It counts for 16-bit models:
their loglikelihoods differ by as much between batches of different shape."""

SAMPLE = 6
"""How many windows in trees, and how many in plain rows, are compared."""

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


class Shortcuts:
    """Holds the shortcuts that one model allows. A shortcut that gives other answers than the ordinary call is switched
    off for good.

    Attributes:
        selection: logits are computed only at the positions that count.
        trees: rows may have branches.
    """

    def __init__(self, model: Any, backend: str) -> None:
        self.selection = backend == "causal"
        self.trees = self.selection and _takes_trees(model)
        self._name = type(model).__name__
        self._epsilon = torch.finfo(model.dtype).eps
        config = model.config.get_text_config()
        self._window, self._hidden = _window(config), int(config.hidden_size)
        self._checked = {True: 0, False: 0}

    def limits(self, batch_size: int) -> Limits:
        # Even at batch size 1 a row may be as long as two windows: most memory goes to logits, and it has few of them.
        return Limits(self.trees, self._window, max(2, batch_size), self._hidden)

    def accept(
        self, layout: Layout, windows: Sequence[Window], lls: NDArray[np.float64], ordinary: Callable[[Window], float]
    ) -> bool:
        """Whether `lls`, the windows' loglikelihoods, may be used. Compares a few with the `ordinary` call where rows
        are longer than any compared before. NaN by the ordinary call proves nothing, and is accepted."""
        for branched, rows in self._unchecked(layout).items():
            # Within a row the last window lies farthest from where it would stand alone.
            numbers = [number for row in rows for number in reversed(row.places)]
            sample = [numbers[int(i)] for i in np.linspace(0, len(numbers) - 1, SAMPLE)]
            expected = np.array([ordinary(windows[number]) for number in sample])
            if np.isnan(expected).any():
                continue
            sizes = np.array([len(windows[number].targets) for number in sample])
            allowed = np.maximum(TOLERANCE, ROUNDINGS * self._epsilon * np.sqrt(sizes))
            equal = lls[sample] == expected  # -inf, too
            with np.errstate(invalid="ignore"):
                equal |= np.abs(lls[sample] - expected) <= allowed
            if not equal.all():
                self._drop(branched, "gives other loglikelihoods")
                return False
            self._checked[branched] = len(rows[0])
        return True

    def refuse(self, layout: Layout, error: Exception) -> None:
        """Switches off the shortcut that made the model fail. Raises the error again if the layout's shortcuts worked
        before."""
        unchecked = self._unchecked(layout)
        if not unchecked or isinstance(error, torch.OutOfMemoryError):
            raise error
        self._drop(True in unchecked, f"fails ({type(error).__name__})")

    def proven(self, layout: Layout) -> bool:
        """Whether rows as long as the layout's have been compared."""
        return not self._unchecked(layout)

    def _unchecked(self, layout: Layout) -> dict[bool, list[Any]]:
        """The rows with branches and the rows without, if the longest is longer than any that was compared."""
        kinds = {b: [row for row in layout.rows if row.branched == b] for b in (True, False)}
        return {b: rows for b, rows in kinds.items() if rows and len(rows[0]) > self._checked[b]}

    def _drop(self, trees: bool, what: str) -> None:
        """Goes one step back: from trees to plain rows, from selected positions to lm-eval's path."""
        if trees:
            self.trees = False
            log.warning("%s %s when prompts share a row: each gets its own from now on", self._name, what)
        else:
            self.trees = self.selection = False
            log.warning("%s %s when logits are computed in part: lm-eval's own path is used", self._name, what)


def _takes_trees(model: Any) -> bool:
    """Whether the model has attention layers only, and takes 4-dimensional masks and positions."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or _ATTENTION)
    parameters = inspect.signature(model.forward).parameters
    dense = model.config._attn_implementation in ("sdpa", "eager")
    return dense and kinds <= _ATTENTION and {"position_ids", "attention_mask"} <= set(parameters)


def _window(config: Any) -> float:
    """The number of tokens that every layer sees: a 4-dimensional mask replaces a layer's sliding or chunked one."""
    if set(getattr(config, "layer_types", None) or _ATTENTION) == {"full_attention"}:
        return float("inf")
    sizes = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((size for size in sizes if size), default=float("inf"))
