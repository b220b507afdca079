"""Tensors that lie elsewhere come to a device in pieces, the next one while kernels run on the last.

Two sets of buffers take turns. So however far the program runs ahead of a GPU, no more memory is used than theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import spans


class Order(Protocol):
    """Keeps copies into a set of buffers and kernels that read it in order."""

    def filling(self, slot: int) -> AbstractContextManager[None]:
        """What is copied inside begins when the kernels that read this set before are done."""
        ...

    def reading(self, slot: int) -> AbstractContextManager[None]:
        """Kernels that are launched inside begin when the set is filled."""
        ...

    def end(self) -> None:
        """The buffers are given back: whoever gets their memory waits for the copies."""
        ...


class Immediate:
    """Where copies and kernels are done when the call returns."""

    def filling(self, slot: int) -> AbstractContextManager[None]:
        return nullcontext()

    reading = filling

    def end(self) -> None:
        pass


class Streams:
    """A GPU: copies have a stream of their own, beside that of the kernels; events tell each of the other."""

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


def moved(
    tensors: Sequence[Tensor], away: Sequence[bool], device: torch.device, size: int, order: Order
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Flat tensors of one length cut into pieces of at most `size` elements, all on the device. Those that are `away`
    are copied there (at the same time as kernels run, if their memory is pinned); a piece is valid until the next."""
    count = tensors[0].numel()
    buffers = [
        [t.new_empty(min(size, count) if far else 0, device=device) for t, far in zip(tensors, away, strict=True)]
        for _ in range(2)
    ]
    try:
        for number, span in enumerate(spans(count, size)):
            slot, length = number % 2, span.stop - span.start
            pieces = [b[:length] if far else t[span] for t, b, far in zip(tensors, buffers[slot], away, strict=True)]
            with order.filling(slot):
                for tensor, piece, far in zip(tensors, pieces, away, strict=True):
                    if far:
                        piece.copy_(tensor[span], non_blocking=True)
            with order.reading(slot):
                yield span, pieces
    finally:
        order.end()
