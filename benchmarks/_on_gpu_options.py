"""What the stages of `on_gpu.py` share: where they run, how they speak, seconds and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """Where a stage runs and how large its models are.

    Attributes:
        device: "cuda" or "cpu".
        toy: whether all is small: for a rehearsal.
        work: an empty folder.
    """

    device: str
    toy: bool
    work: Path


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


class Meter:
    """Seconds and memory of a device."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda, self._on_gpu = torch.cuda, device == "cuda"

    def time(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """The seconds that `work` takes, and what it returns."""
        self._wait()
        started = time.perf_counter()
        found = work()
        self._wait()
        return time.perf_counter() - started, found

    def forget(self) -> None:
        """Count the peak from now on."""
        from _processes import forget_peak

        if self._on_gpu:
            self._cuda.empty_cache()
            self._cuda.reset_peak_memory_stats()
        forget_peak()

    def peak(self) -> str:
        """The most memory since then, in words."""
        from _processes import peak_memory

        host = f"{peak_memory() / 1e9:.2f} GB of host memory"
        return f"{self._cuda.max_memory_allocated() / 1e9:.2f} GB on the card, {host}" if self._on_gpu else host

    def free(self) -> int:
        """Bytes that are free on the device."""
        from evomerge.evaluator.device import host_memory

        return int(self._cuda.mem_get_info()[0]) if self._on_gpu else host_memory().free

    def _wait(self) -> None:
        if self._on_gpu:
            self._cuda.synchronize()
