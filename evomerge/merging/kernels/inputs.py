"""The arguments and the results of merge methods.

A method is a pure function ``(inputs, **parameters) -> Blend | Tensor``. If its formula is elementwise, with a few
numbers for each source, it returns a `Blend`, which runs in one pass and compiles; else the merged tensor. Facts of the
stored tensors alone (histograms, inner products) come from `Inputs`, which remembers them for the next candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from evomerge.checkpoints.structure import is_matrix
from evomerge.merging.kernels.arithmetic import delta, fixed_point, fixed_scale, gram, spans, wide, wide_dtype
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.magnitudes import Block, Cut, Magnitudes
from evomerge.merging.kernels.masks import BLOCK, Draw, limit

T = TypeVar("T")
Remember = Callable[[Hashable, Callable[[], T]], T]
_CHUNK = 1 << 24  # elements that a pass over tensors in another place moves at a time


class Kept(Protocol):
    """What is kept for other processes: tensors, by a text that says all that they depend on."""

    def __call__(self, text: str, make: Callable[[], Mapping[str, Tensor]], /) -> Mapping[str, Tensor]:
        """The tensors of a text; those that `make` gives where there are none yet."""

    def __contains__(self, text: str, /) -> bool: ...


@dataclass(frozen=True)
class Blend:
    """An elementwise merge: a kernel, the tensors that it reads, and its numbers.

    Attributes:
        base: the first argument of the kernel, flat or of the same shape as `tensors`, or None.
        floats: rows of numbers with one column for each tensor.
        ints: gives the rows of integers for the chunk that starts at an element. A chunk lies in one block of masks.
        reusable: whether it may be kept at no cost of memory; False if its tensors are masks that were made for it.
        cuts: those whose positions `ints` asks for.
    """

    kernel: Kernel
    base: Tensor | None
    tensors: Sequence[Tensor]
    floats: Sequence[Sequence[float]]
    ints: Callable[[int], Sequence[Sequence[int]]] = lambda start: ((0,),)
    reusable: bool = True
    cuts: Sequence[Cut] = ()


class Inputs:
    """The stored tensors that one output tensor is merged from.

    Attributes:
        tensors: the merged models' tensors, all of one shape and of the dtype `work`, or one that widens to it.
        base: the base's tensor, for methods that start from it or subtract it, else None.
        draw: the random masks of this output tensor.
        device: where the result is wanted; the tensors may lie elsewhere.
        kept: of what takes long to compute; None: nothing is kept.
        is_matrix: whether they are weight matrices, or stacks of them, whose singular directions mean something.
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
        kept: Kept | None = None,
        name: str = "",
    ) -> None:
        """`keys` name the tensors, the base first (None: not to be remembered); `run` reduces a Blend to integers;
        `name` is the output's."""
        self.tensors, self.base = tuple(tensors), base
        self.work = work or tensors[0].dtype
        self.draw = draw or Draw(0, "")
        self.device = torch.device(device) if device is not None else tensors[0].device
        self._keys = tuple(keys) if keys is not None else (None,) * (len(self.tensors) + 1)
        self._remember = remember or (lambda key, make: make())
        self._run = run
        self.kept = kept
        self.is_matrix = is_matrix(name, tensors[0].shape)
        self._histograms: dict[int, tuple[Magnitudes, Block]] = {}

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

    @property
    def reference(self) -> Tensor:
        """The base's tensor on the device, float32."""
        assert self.base is not None
        return self._wide(self.base)

    def delta(self, i: int) -> Tensor:
        """Source `i` minus the base on the device: rounded to `work`, then float32. A tensor of its own."""
        return self.delta_span(i, slice(0, self.count)).reshape(self.shape)

    def delta_span(self, i: int, span: slice) -> Tensor:
        """A span of delta `i`, flat, as `delta` gives it."""
        assert self.base is not None
        source, base = (t.reshape(-1)[span].to(self.device).to(self.work) for t in (self.tensors[i], self.base))
        return delta(source, base)

    def by_matrix(self, merge: Callable[[Inputs], Tensor]) -> Tensor:
        """The tensor in which each matrix is `merge` of its inputs."""
        if len(self.shape) == 2:
            return merge(self)
        return torch.stack([merge(self._part(i)) for i in range(self.shape[0])])

    def _part(self, i: int) -> Inputs:
        """The inputs of one matrix of a stack."""
        keys = [None if key is None else (key, i) for key in self._keys]
        return Inputs(
            [tensor[i] for tensor in self.tensors],
            None if self.base is None else self.base[i],
            work=self.work,
            device=self.device,
            keys=keys,
            remember=self._remember,
            kept=self.kept,
        )

    def _wide(self, tensor: Tensor) -> Tensor:
        return wide(tensor.to(self.device).to(self.work))

    # Facts of the stored tensors, remembered between candidates

    def magnitudes(self, i: int) -> Magnitudes:
        """The histogram of delta `i`."""
        return self._counted(i)[0]

    def cut(self, i: int, keep: int) -> Cut:
        """The `keep` elements of delta `i` that are largest in magnitude."""
        histogram, delta = self._counted(i)
        return histogram.cut(keep, delta)

    def _counted(self, i: int) -> tuple[Magnitudes, Block]:
        """The histogram of delta `i`, and the delta that was counted."""
        if i not in self._histograms:
            delta = self._stored_delta(i)
            made = self._once("magnitudes", (i + 1, 0), lambda: Magnitudes(delta, self.count, self.work))
            self._histograms[i] = made, delta
        return self._histograms[i]

    def norm(self, i: int) -> float:
        """The L1 norm of delta `i`."""
        return self._once("norm", (i + 1, 0), lambda: self._top_norm(i, self.count))

    def kept_norm(self, i: int, drop: int, keep: int) -> float:
        """The L1 norm of delta `i`'s elements from rank `drop` to rank `keep`, counted from the largest magnitude."""
        return self._top_norm(i, keep) - self._top_norm(i, drop)

    def drawn_norms(self, density: Sequence[float]) -> list[float]:
        """The L1 norm of each delta under its random mask, comparable to `full_norms`."""
        scales = self._scales()
        sums = self._fixed_sums(scales, self.draw, density)
        return [s / scale if d > 0 else 0.0 for s, scale, d in zip(sums, scales, density, strict=True)]

    def full_norms(self) -> list[float]:
        """The L1 norm of each delta, summed as `drawn_norms` does."""
        return self.once("full_norms", self._full_norms)

    def gram(self, *, deltas: bool, base: bool = False) -> tuple[tuple[float, ...], ...]:
        """All inner products (float64) of the deltas, or of the tensors (after the base if `base`)."""
        members = range(0 if base else 1, len(self) + 1)

        def vectors(span: slice) -> list[Tensor]:
            if deltas:
                return [self.delta_span(i, span) for i in range(len(self))]
            stored = (self.base, *self.tensors)
            return [
                t.reshape(-1)[span].to(self.device).to(self.work) for t in (stored[m] for m in members) if t is not None
            ]

        keys = (0, *members) if deltas else tuple(members)
        return self._once(f"gram {deltas} {base}", keys, lambda: gram(vectors, self.count))

    def of_delta(self, what: str, i: int, make: Callable[[], T]) -> T:
        """The result of `make`, remembered as a fact of delta `i` under the name `what`."""
        return self._once(what, (0, i + 1), make)

    def once(self, what: str, make: Callable[[], T]) -> T:
        """The result of `make`, remembered as a fact of all these stored tensors under the name `what`."""
        return self._once(what, range(len(self) + 1), make)

    def reduce(self, blend: Blend) -> list[int]:
        """The integers that a reducing Blend gives, summed over all elements."""
        return self._run(blend) if self._run and self.count else _reduced(blend, self.work)

    def _once(self, what: str, members: Sequence[int], make: Callable[[], T]) -> T:
        """The result of `make`, remembered under the keys of the tensors that it depends on."""
        keys = tuple(self._keys[m] for m in members)
        if any(key is None for key in keys):
            return make()
        value: T = self._remember((what, str(self.work), keys), make)
        return value

    def _stored_delta(self, i: int) -> Block:
        """Delta `i` in the dtype `work`, as a function that gives one span."""
        source, base = self.tensors[i].reshape(-1), self.base
        assert base is not None
        flat, device, work = base.reshape(-1), self.device, self.work
        if source.dtype == flat.dtype == work and source.device == flat.device == device:
            return lambda span: source[span] - flat[span]
        return lambda span: source[span].to(device).to(work) - flat[span].to(device).to(work)

    def _top_norm(self, i: int, keep: int) -> float:
        """The L1 norm of delta `i`'s `keep` largest elements."""
        counted = self.magnitudes(i).norm(keep) if keep > 0 else 0.0
        if counted is not None:
            return counted
        # Where the histogram does not tell it: one pass, in fixed point so that the order of the sum does not matter
        cut, total = self.cut(i, keep), 0
        scale = fixed_scale(self.magnitudes(i).largest)
        for span in spans(self.count, _CHUNK):
            size = self.delta_span(i, span).abs()
            index = torch.arange(span.start, span.stop, device=size.device)
            kept = (size > cut.value) | ((size == cut.value) & (index < cut.position))
            total += int(fixed_point(size * kept, scale).sum(dtype=torch.float64))
        return total / scale

    def _full_norms(self) -> list[float]:
        scales = self._scales()
        counted = [self.magnitudes(i).fixed_norm(scale) for i, scale in enumerate(scales)]
        sums = [n for n in counted if n is not None]
        if len(sums) < len(scales):
            sums = self._fixed_sums(scales, Draw(0, ""), [1.0] * len(self))
        return [s / scale for s, scale in zip(sums, scales, strict=True)]

    def _fixed_sums(self, scales: Sequence[float], draw: Draw, density: Sequence[float]) -> list[int]:
        """The sum of each delta's magnitudes under a random mask, in these units of fixed point."""
        kernel = Kernel("drawn_norms", (("work", self.work),))
        return self.reduce(Blend(kernel, self.base, self.tensors, [scales], mask_ints(draw, density)))

    def _scales(self) -> list[float]:
        """The units of each delta's magnitudes in fixed point."""
        return [fixed_scale(self.magnitudes(i).largest) for i in range(len(self))]


def mask_ints(draw: Draw, density: Sequence[float]) -> Callable[[int], list[list[int]]]:
    """The `Blend.ints` of kernels that draw random masks, one row each: the first element's number in its block, both
    keys, the largest hash that is kept."""

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
    sums = blend.kernel.bound()(base, flat, floats, torch.tensor(blend.ints(0), dtype=torch.int32))
    return [int(n) for n in sums.tolist()]
