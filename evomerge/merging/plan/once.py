"""A tensor that several jobs take parts of."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch


class Once:
    """Keeps a tensor until as many have got it as are to get it, in any thread; then it would be made again."""

    def __init__(self, count: int) -> None:
        self._count, self._left, self._lock = count, 0, threading.Lock()
        self._tensor: torch.Tensor | None = None

    def get(self, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor, of `make` if it is not there."""
        with self._lock:
            if self._tensor is None:
                self._tensor, self._left = make(), self._count
            tensor, self._left = self._tensor, self._left - 1
            if not self._left:
                self._tensor = None
            return tensor
