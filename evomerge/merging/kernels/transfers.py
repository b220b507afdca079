"""Copies tensors from elsewhere to a device in chunks, the next one while kernels run on the last.

Two sets of buffers take turns, so that no more memory is used however far the program runs ahead of a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import spans


class Order(Protocol):
    """Orders the copies into a set of buffers and the kernels that read it."""

    def filling(self, slot: int) -> AbstractContextManager[None]:
        """Copies that are started inside this context wait for the kernels that read the set before."""
        ...

    def reading(self, slot: int) -> AbstractContextManager[None]:
        """Kernels that are launched inside this context wait until the set is filled."""
        ...

    def end(self) -> None:
        """Give the buffers back: kernels that get their memory next wait for the copies."""
        ...


class Immediate:
    """The order of a device on which copies and kernels are done when the call returns."""

    def filling(self, slot: int) -> AbstractContextManager[None]:
        return nullcontext()

    reading = filling

    def end(self) -> None:
        pass


class Streams:
    """The order of a GPU: copies have a stream of their own beside that of the kernels, and events connect the two."""

    def __init__(self, device: torch.device) -> None:
        self._copies, self._kernels = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
        self._filled = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._read = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._copies.wait_stream(self._kernels)  # the buffers' memory may still be read by earlier kernels

    @contextmanager
    def filling(self, slot: int) -> Iterator[None]:
        self._copies.wait_event(self._read[slot])
        with torch.cuda.stream(self._copies):
            yield
        self._filled[slot].record(self._copies)

    @contextmanager
    def reading(self, slot: int) -> Iterator[None]:
        self._kernels.wait_event(self._filled[slot])
        yield
        self._read[slot].record(self._kernels)

    def end(self) -> None:
        self._kernels.wait_stream(self._copies)


def is_away(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device != device


def order_of(device: torch.device) -> Order:
    return Streams(device) if device.type == "cuda" else Immediate()


def moved_chunks(
    tensors: Sequence[Tensor], away: Sequence[bool], device: torch.device, size: int, order: Order
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Cuts flat tensors of one length into chunks of at most `size` elements, all on the device.

    Tensors that are `away` are copied there (while kernels run, if their memory is pinned). A chunk is valid until the
    next one.
    """
    count = tensors[0].numel()
    buffers = [
        [t.new_empty(min(size, count) if far else 0, device=device) for t, far in zip(tensors, away, strict=True)]
        for _ in range(2)
    ]
    try:
        for number, span in enumerate(spans(count, size)):
            slot, length = number % 2, span.stop - span.start
            chunks = [b[:length] if far else t[span] for t, b, far in zip(tensors, buffers[slot], away, strict=True)]
            with order.filling(slot):
                for tensor, chunk, far in zip(tensors, chunks, away, strict=True):
                    if far:
                        chunk.copy_(tensor[span], non_blocking=True)
            with order.reading(slot):
                yield span, chunks
    finally:
        order.end()
