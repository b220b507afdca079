"""What a merge method is given, and what it may answer with.

A method is a pure function ``(inputs, **parameters) -> Blend | Tensor``. Where it can be said as a few numbers for each
source and an elementwise formula it answers with a `Blend`, which runs in one pass and compiles; else with the merged
tensor. What depends on the stored tensors alone (histograms, inner products) comes from `Inputs`, which remembers it
for the next candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import delta, fixed_point, gram, spans, unit, wide, wide_dtype
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.magnitudes import Cut, Magnitudes
from evomerge.merging.kernels.masks import Draw

T = TypeVar("T")
Remember = Callable[[Hashable, Callable[[], T]], T]
_PIECE = 1 << 24  # elements that a pass over tensors in another place moves at a time


@dataclass(frozen=True)
class Blend:
    """An elementwise merge: a kernel, the tensors that it reads, and its numbers.

    Attributes:
        base: the first argument of the kernel, flat or of any one shape with `tensors`, or None.
        floats: rows of numbers with one column for each tensor.
        ints: the rows of integers for the piece that starts at an element; such pieces do not cross a block of masks.
    """

    kernel: Kernel
    base: Tensor | None
    tensors: Sequence[Tensor]
    floats: Sequence[Sequence[float]]
    ints: Callable[[int], Sequence[Sequence[int]]] = lambda start: ((0,),)


class Inputs:
    """The stored tensors that one output tensor is merged from.

    Attributes:
        tensors: of the merged models, all of one shape and of the dtype `work`, or one that widens to it.
        base: the base's, for methods that start from it or subtract it, else None.
        draw: the random masks of this output tensor.
        device: where the result is wanted; the tensors may lie elsewhere.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        base: Tensor | None,
        *,
        work: torch.dtype | None = None,
        draw: Draw | None = None,
        device: torch.device | str | None = None,
        keys: Sequence[Hashable] | None = None,
        remember: Callable[[Hashable, Callable[[], Any]], Any] | None = None,
        run: Callable[[Blend], list[int]] | None = None,
    ) -> None:
        """`keys` name the tensors, the base first (None: not to be remembered); `run` reduces a Blend to integers."""
        self.tensors, self.base = tuple(tensors), base
        self.work = work or tensors[0].dtype
        self.draw = draw or Draw(0, "")
        self.device = torch.device(device) if device is not None else tensors[0].device
        self._keys = tuple(keys) if keys is not None else (None,) * (len(self.tensors) + 1)
        self._remember = remember or (lambda key, make: make())
        self._run = run

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def shape(self) -> torch.Size:
        return self.tensors[0].shape

    @property
    def count(self) -> int:
        """The number of elements of each tensor."""
        return self.tensors[0].numel()

    # Whole tensors, for methods that are not elementwise

    def theta(self, i: int) -> Tensor:
        """Source `i`'s tensor on the device, float32 (float64 where the work is)."""
        return self._wide(self.tensors[i])

    @cached_property
    def reference(self) -> Tensor:
        """The base's tensor on the device, float32."""
        assert self.base is not None
        return self._wide(self.base)

    def delta(self, i: int) -> Tensor:
        """Source `i` minus the base on the device: rounded to `work`, then float32. A tensor of its own."""
        return self.piece(i, slice(0, self.count)).reshape(self.shape)

    def piece(self, i: int, span: slice) -> Tensor:
        """A span of delta `i`, flat."""
        assert self.base is not None
        parts = [t.reshape(-1)[span].to(self.device).to(self.work) for t in (self.tensors[i], self.base)]
        return delta(*parts)

    def _wide(self, tensor: Tensor) -> Tensor:
        return wide(tensor.to(self.device).to(self.work))

    # What is known of the stored tensors

    def magnitudes(self, i: int) -> Magnitudes:
        """The histogram of delta `i`."""
        made: Magnitudes = self._once(
            "magnitudes", (i + 1, 0), lambda: Magnitudes(self._block(i), self.count, self.work)
        )
        return made

    def cut(self, i: int, keep: int) -> Cut:
        """The `keep` elements of delta `i` that are largest in magnitude."""
        return self.magnitudes(i).cut(keep, self._block(i))

    def norm(self, i: int) -> float:
        """The L1 norm of delta `i`."""
        return self._once("norm", (i + 1, 0), lambda: self._top_norm(i, self.count))

    def kept_norm(self, i: int, drop: int, keep: int) -> float:
        """The L1 norm of delta `i`'s elements from rank `drop` to rank `keep`, counted from the largest magnitude."""
        return self._top_norm(i, keep) - self._top_norm(i, drop)

    def drawn_norms(self, density: Sequence[float]) -> list[float]:
        """The L1 norm of what each delta keeps of a random mask, in units of which `full_norms` are the whole."""
        return self._fixed_norms(density, self.draw)

    def full_norms(self) -> list[float]:
        """The L1 norm of each delta, summed as `drawn_norms` does."""
        keys = tuple(range(len(self) + 1))
        made: list[float] = self._once("full_norms", keys, lambda: self._fixed_norms([1.0] * len(self), Draw(0, "")))
        return made

    def gram(self, *, deltas: bool, base: bool = False) -> tuple[tuple[float, ...], ...]:
        """All inner products (float64) of the deltas, or of the tensors (after the base if `base`)."""
        members = range(0 if base else 1, len(self) + 1)

        def block(span: slice) -> list[Tensor]:
            if deltas:
                return [self.piece(i, span) for i in range(len(self))]
            stored = (self.base, *self.tensors)
            return [
                t.reshape(-1)[span].to(self.device).to(self.work) for t in (stored[m] for m in members) if t is not None
            ]

        keys = (0, *members) if deltas else tuple(members)
        made: tuple[tuple[float, ...], ...] = self._once(f"gram {deltas} {base}", keys, lambda: gram(block, self.count))
        return made

    def once(self, what: str, make: Callable[[], T]) -> T:
        """What `make` returns, remembered as a fact of all these stored tensors."""
        return self._once(what, range(len(self) + 1), make)

    def reduce(self, blend: Blend) -> list[int]:
        """The integers that a reducing Blend gives, summed over all elements."""
        return self._run(blend) if self._run and self.count else _reduced(blend, self.work)

    def _once(self, what: str, members: Sequence[int], make: Callable[[], T]) -> T:
        """Remembered under the names of the tensors that it is made of."""
        keys = tuple(self._keys[m] for m in members)
        if any(key is None for key in keys):
            return make()
        found: T = self._remember((what, str(self.work), keys), make)
        return found

    def _block(self, i: int) -> Callable[[slice], Tensor]:
        """Delta `i` in the dtype `work`, span by span."""
        source, base = self.tensors[i].reshape(-1), self.base
        assert base is not None
        flat, device, work = base.reshape(-1), self.device, self.work
        return lambda span: source[span].to(device).to(work) - flat[span].to(device).to(work)

    def _top_norm(self, i: int, keep: int) -> float:
        found = self.magnitudes(i).norm(keep) if keep > 0 else 0.0
        if found is not None:
            return found
        cut, total = self.cut(i, keep), 0
        scale = unit(self.magnitudes(i).largest)
        for span in spans(self.count, _PIECE):
            size = self.piece(i, span).abs()
            index = torch.arange(span.start, span.stop, device=size.device)
            kept = (size > cut.value) | ((size == cut.value) & (index < cut.position))
            total += int(fixed_point(size * kept, scale).sum(dtype=torch.float64))
        return total / scale

    def _fixed_norms(self, density: Sequence[float], draw: Draw) -> list[float]:
        scales = [unit(self.magnitudes(i).largest) for i in range(len(self))]
        kernel = Kernel("drawn_norms", (("work", self.work),))
        blend = Blend(kernel, self.base, self.tensors, [scales], drawing(draw, density))
        sums = self.reduce(blend)
        return [s / scale if d > 0 else 0.0 for s, scale, d in zip(sums, scales, density, strict=True)]


def drawing(draw: Draw, density: Sequence[float]) -> Callable[[int], list[list[int]]]:
    """The integers of kernels that draw: the first element's number in its block, both keys, the largest hash kept."""
    from evomerge.merging.kernels.masks import BLOCK, limit

    def ints(start: int) -> list[list[int]]:
        keys = [draw.keys(i, start // BLOCK) for i in range(len(density))]
        limits = [limit(d) if d > 0 else -(1 << 31) for d in density]
        return [[start % BLOCK] * len(density), [k[0] for k in keys], [k[1] for k in keys], limits]

    return ints


def _reduced(blend: Blend, work: torch.dtype) -> list[int]:
    """Run a reducing Blend on whole tensors."""
    floats = torch.tensor(blend.floats, dtype=wide_dtype(work))
    flat = [t.reshape(-1) for t in blend.tensors]
    base = None if blend.base is None else blend.base.reshape(-1)
    found = blend.kernel.bound()(base, flat, floats, torch.tensor(blend.ints(0), dtype=torch.int32))
    return [int(n) for n in found.tolist()]
