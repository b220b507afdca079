"""Runs Blends: as one compiled loop where that pays, else in chunks that stay in the processor's cache.

A tensor on another device than its result (in host memory, for a GPU) is copied over in chunks, the next chunk while
the last one is merged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import spans, wide_dtype
from evomerge.merging.kernels.compiled import Compiled, Signature
from evomerge.merging.kernels.inputs import Blend
from evomerge.merging.kernels.magnitudes import locate
from evomerge.merging.kernels.masks import BLOCK
from evomerge.merging.kernels.rows import Joint
from evomerge.merging.kernels.threads import each
from evomerge.merging.kernels.transfers import is_away, moved_chunks, order_of

_CACHED = 1 << 18  # elements of a chunk on the CPU: small enough for its caches
_ALONE = 1 << 15  # elements below which torch uses one thread by itself
_MOVED = 1 << 24  # elements of a chunk that is moved to another device
_PULLED = 1 << 21  # the same where autograd keeps `_KEPT` tensors in float32 of a chunk's size
_KEPT = 12
_JOINT = 1 << 28  # elements of rows that are merged in one call
_SMALL = 64  # tensors below this are not worth a compiled call


def pulling_bytes(count: int) -> int:
    """The most bytes that `Runner.pull` takes besides its arguments, for a tensor of `count` elements."""
    return _KEPT * 4 * min(count, _PULLED)


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
        locate(blend.cuts)

        def store(span: slice, chunk: Blend, floats: Tensor, ints: Tensor) -> None:
            write(flat[span], chunk.base, chunk.tensors, floats, ints)

        signature = Signature.of(blend, str(out.device), work, out.dtype)
        compiled = self._function(signature, out.numel())
        write = compiled or signature.function()
        self._each_chunk(blend, out.device, work, None if compiled else signature, store)

    @torch.no_grad()
    def write_all(self, blends: Sequence[Blend], outs: Sequence[Tensor], work: torch.dtype) -> None:
        """`write` of several: in one call where their tensors are rows (`rows.py`) and that is compiled."""
        locate(cut for blend in blends for cut in blend.cuts)
        for part in _parts(blends):
            if self._joined(blends[part], outs[part], work, outs[0].device) is None:
                for blend, out in zip(blends[part], outs[part], strict=True):
                    self.write(blend, out, work)

    @torch.no_grad()
    def reduce(self, blend: Blend, work: torch.dtype, device: torch.device | str = "cpu") -> list[int]:
        """The integers that a reducing kernel gives, summed over all elements."""
        totals: list[Tensor] = []
        signature = Signature.of(blend, str(device), work, None)
        compiled = self._function(signature, blend.tensors[0].numel())
        function = compiled or signature.function()

        def add(span: slice, chunk: Blend, floats: Tensor, ints: Tensor) -> None:
            totals.append(function(chunk.base, chunk.tensors, floats, ints))

        self._each_chunk(blend, torch.device(device), work, None if compiled else signature, add)
        return [int(n) for n in torch.stack(totals).sum(dim=0).tolist()] if totals else []

    @torch.no_grad()
    def reduce_all(self, blends: Sequence[Blend], work: torch.dtype, device: torch.device) -> list[list[int]]:
        """`reduce` of several, whose kernel sums along the last dimension: in one call as in `write_all`."""
        sums: list[list[int]] = []
        for part in _parts(blends):
            found = self._joined(blends[part], (), work, device)
            if found is None:
                sums += [self.reduce(blend, work, device) for blend in blends[part]]
            else:
                sums += [[int(n) for n in column] for column in found.T.tolist()]
        return sums

    def _joined(
        self, blends: Sequence[Blend], outs: Sequence[Tensor], work: torch.dtype, device: torch.device
    ) -> Tensor | None:
        """What the kernel for rows returns; None where the blends are none, or it is not compiled yet."""
        worth = self._compiled is not None and blends[0].tensors[0].numel() >= _SMALL
        joint = Joint.of(blends, outs) if worth else None
        if self._compiled is None or joint is None or joint.device != device:
            return None
        signature = joint.signature(work)
        function = self._compiled.find(signature)
        if function is None:
            self._compiled.accompany(signature)
            return None
        return function(*joint.arguments(work))

    def pull(self, blend: Blend, floats: Tensor, gradient: Tensor, work: torch.dtype) -> Tensor:
        """d loss / d floats (float64, on the gradient's device), where `gradient` is d loss / d merged tensor and
        `floats` [rows, columns] stand in for the blend's."""
        device, flat = gradient.device, gradient.reshape(-1)
        numbers = floats.detach().to(device, wide_dtype(work)).requires_grad_()
        total = torch.zeros(numbers.shape, dtype=torch.float64, device=device)
        for span, chunk in _chunks(blend, device, _CACHED if device.type == "cpu" else _PULLED):
            ints = torch.tensor(blend.ints(span.start), dtype=torch.int32, device=device)
            with torch.enable_grad():
                merged = blend.kernel.bound()(chunk.base, chunk.tensors, numbers, ints)
            total += torch.autograd.grad(merged, numbers, flat[span].to(merged.dtype))[0]
        return total

    def _function(self, signature: Signature, count: int) -> Callable[..., Tensor] | None:
        """The compiled kernel, if there is one and the tensors are worth the call."""
        return self._compiled.find(signature) if self._compiled and count >= _SMALL else None

    def _each_chunk(
        self,
        blend: Blend,
        device: torch.device,
        work: torch.dtype,
        plain: Signature | None,
        act: Callable[[slice, Blend, Tensor, Tensor], None],
    ) -> None:
        """Calls `act(span, chunk, floats, ints)` for the blend's chunks, on the device. The seconds that this takes are
        counted for the signature `plain`, if there is one: the kernel runs in plain torch."""
        floats = torch.tensor(blend.floats, dtype=wide_dtype(work), device=device)
        begun = time.perf_counter()

        def act_on(part: tuple[slice, Blend]) -> None:
            act(*part, floats, torch.tensor(blend.ints(part[0].start), dtype=torch.int32, device=device))

        size = BLOCK if plain is None else _part(blend.tensors[0].numel()) if device.type == "cpu" else _MOVED
        parts = _chunks(blend, device, size)
        stored = [t for t in (blend.base, *blend.tensors) if t is not None]
        if plain is None or device.type != "cpu" or any(is_away(t, device) for t in stored):
            for part in parts:
                act_on(part)
        else:
            each(act_on, parts)
        if self._compiled is not None and plain is not None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            self._compiled.spent(plain, time.perf_counter() - begun)


def _parts(blends: Sequence[Blend]) -> Iterator[slice]:
    """Cuts blends of one size into parts of at most `_JOINT` elements: compilers number those with 32 bits."""
    return spans(len(blends), max(1, _JOINT // max(1, blends[0].tensors[0].numel())))


def _part(count: int) -> int:
    """The elements of a chunk in plain torch on the CPU: a chunk for each thread at least."""
    each_one = -(-count // torch.get_num_threads())
    return min(_CACHED, max(_ALONE, 1 << max(0, each_one - 1).bit_length()))


def _chunks(blend: Blend, device: torch.device, size: int) -> Iterator[tuple[slice, Blend]]:
    """The blend cut into chunks of `size` elements, each on the device. Chunks that are moved there have at most
    `_MOVED` elements. All sizes are powers of two, so that no chunk crosses a block of masks."""
    has_base = blend.base is not None
    tensors = [t.reshape(-1) for t in (blend.base, *blend.tensors) if t is not None]
    away = [is_away(t, device) for t in tensors]
    count = tensors[0].numel()
    cuts: Iterable[tuple[slice, list[Tensor]]]
    if any(away):
        cuts = moved_chunks(tensors, away, device, min(size, _MOVED), order_of(device))
    elif 0 < count <= size:
        cuts = [(slice(0, count), tensors)]  # whole: a mixture of experts has thousands of small tensors
    else:
        cuts = ((span, [t[span] for t in tensors]) for span in spans(count, size))
    for span, parts in cuts:
        yield span, Blend(blend.kernel, parts[0] if has_base else None, parts[int(has_base) :], ())
