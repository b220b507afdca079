"""Digests of all tensors of a model: equal digests mean equal bits.

One pass over each tensor, on its own device, sums hashes of its 32-bit words and their places, and finds NaN and Inf on
the way. A digest tells models apart; it does not guard against forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend
from evomerge.merging.kernels.runner import Runner

_EXPONENTS = {
    torch.bfloat16: (0x7F80, 0x7F800000),
    torch.float16: (0x7C00, 0x7C000000),
    torch.float32: (0x7F800000,),
}
_PLAIN = Runner()


class NotFinite(Exception):
    """A tensor holds NaN or Inf; the message is its name."""


def tensor_record(name: str, tensor: Tensor, runner: Runner = _PLAIN) -> str:
    """One tensor's line in a digest: name, dtype, shape, 128 bits of fingerprint of its bytes in row-major order.

    Raises:
        NotFinite: it holds NaN or Inf.
    """
    return tensor_records([(name, tensor)], runner)[0]


def tensor_records(named: Sequence[tuple[str, Tensor]], runner: Runner = _PLAIN) -> list[str]:
    """`tensor_record` of several, which takes one pass where they are the rows of one tensor (`rows.py`)."""
    return Words.of(named).records(runner)


@dataclass(frozen=True)
class Words:
    """Tensors as 32-bit words, ready for their fingerprints.

    Attributes:
        shared: whether all words are in the tensors' own memory, so that they stay right when that is written to.
    """

    named: Sequence[tuple[str, Tensor]]
    blends: Sequence[Blend]
    tails: Sequence[bytes]
    shared: bool

    @classmethod
    def of(cls, named: Sequence[tuple[str, Tensor]]) -> Words:
        """Raises NotFinite where the words' fingerprint would not tell."""
        blends, tails = zip(*(_words(name, tensor) for name, tensor in named), strict=True)
        own = all(b.tensors[0].data_ptr() == t.data_ptr() for (_, t), b in zip(named, blends, strict=True))
        return cls(named, blends, tails, own and not any(tails) and all(t.dtype in _EXPONENTS for _, t in named))

    def records(self, runner: Runner = _PLAIN) -> list[str]:
        """`tensor_records` of them as they are now. Raises NotFinite."""
        sums = runner.reduce_all(self.blends, torch.float32, self.named[0][1].device)
        return [_line(*each, found, tail) for each, found, tail in zip(self.named, sums, self.tails, strict=True)]


def _words(name: str, tensor: Tensor) -> tuple[Blend, bytes]:
    """The fingerprint of a tensor's 32-bit words, and the bytes behind the last. Raises NotFinite where the words'
    fingerprint would not tell."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = data.numel() // 4 * 4
    if data.storage_offset() % 4:
        data = data.clone()
    words, tail = data[:whole].view(torch.int32), bytes(data[whole:].tolist()) if whole < data.numel() else b""
    if tensor.is_floating_point() and (tail or tensor.dtype not in _EXPONENTS) and not bool(tensor.isfinite().all()):
        raise NotFinite(name)
    kernel = Kernel("fingerprint", (("exponents", _EXPONENTS.get(tensor.dtype, ())),))
    return Blend(kernel, None, [words], [[0.0]], lambda start: [[start % (1 << 31)]]), tail


def _line(name: str, tensor: Tensor, sums: Sequence[int], tail: bytes) -> str:
    """A tensor's line, by the sums of its words' fingerprint (none: it has no words)."""
    first, second, broken = sums or (0, 0, 0)
    if broken:
        raise NotFinite(name)
    shape = ",".join(map(str, tensor.shape))
    mask = (1 << 64) - 1
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{name} {kind} [{shape}] {first & mask:016x}{second & mask:016x}{tail.hex()}"


def combined(records: Iterable[str]) -> str:
    """The digest of a model: sha256 (hex) of its tensors' lines, sorted."""
    return hashlib.sha256("\n".join(sorted(records)).encode()).hexdigest()


def digest(tensors: Iterable[tuple[str, Tensor]], runner: Runner = _PLAIN) -> str:
    """The digest (hex) of tensors by name. Raises NotFinite."""
    return combined(tensor_record(name, tensor, runner) for name, tensor in tensors)
