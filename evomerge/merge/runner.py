"""Runs Blends: as one compiled loop where that pays, else in pieces that stay in the processor's cache.

A tensor that lies elsewhere than its result (in host memory, for a GPU) is brought over in pieces, the next piece while the
last one is merged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from evomerge.merge.arithmetic import spans, wide_dtype
from evomerge.merge.compiled import Compiled, Signature
from evomerge.merge.inputs import Blend
from evomerge.merge.masks import BLOCK

_CACHED = 1 << 17  # elements of a piece on the CPU: the float32 steps of one stay in the second-level cache
_MOVED = 1 << 24  # elements of a piece that is moved to another device
_SMALL = 1 << 12  # tensors below this are not worth a compiled call


class Runner:
    """Runs Blends on any device.

    Without `compiled` nothing is ever compiled; the bits are the same.
    """

    def __init__(self, compiled: Compiled | None = None) -> None:
        self._compiled = compiled

    @torch.no_grad()
    def write(self, blend: Blend, out: Tensor, work: torch.dtype) -> None:
        """Write the merged tensor, rounded to `work`, into `out` (contiguous, of the tensors' shape)."""
        flat = out.view(-1)

        def store(span: slice, piece: Blend, floats: Tensor, ints: Tensor) -> None:
            write(flat[span], piece.base, piece.tensors, floats, ints)

        signature = Signature.of(blend, out.device.type, work, out.dtype)
        write = self._function(signature, out.numel()) or signature.function()
        self._each(blend, out.device, work, signature, store)

    @torch.no_grad()
    def reduce(self, blend: Blend, work: torch.dtype, device: torch.device | str = "cpu") -> list[int]:
        """The integers that a reducing kernel gives, summed over all elements."""
        totals: list[Tensor] = []
        signature = Signature.of(blend, torch.device(device).type, work, None)
        function = self._function(signature, blend.tensors[0].numel()) or signature.function()

        def add(span: slice, piece: Blend, floats: Tensor, ints: Tensor) -> None:
            totals.append(function(piece.base, piece.tensors, floats, ints))

        self._each(blend, torch.device(device), work, signature, add)
        return [int(n) for n in torch.stack(totals).sum(dim=0).tolist()] if totals else []

    def _function(self, signature: Signature, count: int) -> Callable[..., Tensor] | None:
        return self._compiled.find(signature) if self._compiled and count >= _SMALL else None

    def _each(
        self,
        blend: Blend,
        device: torch.device,
        work: torch.dtype,
        signature: Signature,
        act: Callable[[slice, Blend, Tensor, Tensor], None],
    ) -> None:
        """Call `act` with the blend's pieces on the device."""
        compiled = self._compiled is not None and self._compiled.ready(signature)
        floats = torch.tensor(blend.floats, dtype=wide_dtype(work), device=device)
        begun = time.perf_counter()
        for span, piece in _pieces(blend, device, compiled):
            act(span, piece, floats, torch.tensor(blend.ints(span.start), dtype=torch.int32, device=device))
        if self._compiled is not None and not compiled:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self._compiled.spent(signature, time.perf_counter() - begun)


def _pieces(blend: Blend, device: torch.device, compiled: bool) -> Iterator[tuple[slice, Blend]]:
    """The blend cut into pieces, each on the device."""
    tensors = [t.reshape(-1) for t in blend.tensors]
    base = None if blend.base is None else blend.base.reshape(-1)
    moved = any(t.device != device for t in (*tensors, *([] if base is None else [base])))
    size = _MOVED if moved else BLOCK if compiled else _CACHED if device.type == "cpu" else _MOVED

    def cut(span: slice) -> Blend:
        parts = [t[span].to(device, non_blocking=True) for t in tensors]
        return Blend(blend.kernel, None if base is None else base[span].to(device, non_blocking=True), parts, ())

    parts = list(spans(tensors[0].numel(), size))
    if not (moved and device.type == "cuda"):
        yield from ((span, cut(span)) for span in parts)
        return
    yield from _double_buffered(parts, cut, device)


def _double_buffered(
    parts: list[slice], cut: Callable[[slice], Blend], device: torch.device
) -> Iterator[tuple[slice, Blend]]:
    """The next piece is copied on a stream of its own while the caller's kernels run on the last one."""
    copies, kernels = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        coming = cut(parts[0])
    for number, span in enumerate(parts):
        kernels.wait_stream(copies)
        piece = coming
        for tensor in (*piece.tensors, *([] if piece.base is None else [piece.base])):
            tensor.record_stream(kernels)
        if number + 1 < len(parts):
            with torch.cuda.stream(copies):
                coming = cut(parts[number + 1])
        yield span, piece


