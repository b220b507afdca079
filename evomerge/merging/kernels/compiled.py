"""Compiled kernels, when they pay.

Compiling a kernel takes seconds, a candidate of a small model milliseconds. So kernels run as plain torch until that
has cost more than compiling would; then a process of its own compiles into torch's cache on disk while this one goes
on as before, and the kernel is taken from the cache once it is there. Without a working compiler everything stays as
it is.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import rounded, wide_dtype
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend

_log = logging.getLogger(__name__)
_WORTH = 2.0  # seconds in plain torch after which compiling begins
# Roundings to 16 bits in the middle of a formula are not optimized away, products not fused into sums, and whatever is
# used twice stays in registers (the thresholds are torch's for when to put it into memory instead)
_OPTIONS: dict[str, Any] = {
    "emulate_precision_casts": True,
    "cpp.dynamic_threads": True,
    "compile_threads": 1,
    "realize_reads_threshold": 1000,
    "realize_opcount_threshold": 10000,
    "realize_acc_reads_threshold": 1000,
}


@dataclass(frozen=True)
class Signature:
    """What a kernel is compiled for. `out` None: the kernel reduces to integers."""

    kernel: Kernel
    device: str
    base: torch.dtype | None
    tensors: tuple[torch.dtype, ...]
    work: torch.dtype
    out: torch.dtype | None
    rows: tuple[int, int]

    @classmethod
    def of(cls, blend: Blend, device: str, work: torch.dtype, out: torch.dtype | None) -> Signature:
        base = None if blend.base is None else blend.base.dtype
        rows = len(blend.floats), len(blend.ints(0))
        return cls(blend.kernel, device, base, tuple(t.dtype for t in blend.tensors), work, out, rows)

    def function(self) -> Callable[..., Tensor]:
        """``(out, base, tensors, floats, ints) -> out``, or without `out` where the kernel reduces."""
        bound = self.kernel.bound()
        return bound if self.out is None else functools.partial(_write, bound, self.work)

    def example(self, count: int = (1 << 16) + 5) -> list[Any]:
        """Arguments that fit: numbers as weights have them, so that roundings show."""
        numbers, columns = torch.Generator().manual_seed(0), len(self.tensors)

        def made(dtype: torch.dtype) -> Tensor:
            if not dtype.is_floating_point:
                return torch.randint(-(1 << 31), 1 << 31, (count,), generator=numbers).to(dtype).to(self.device)
            return (torch.randn(count, generator=numbers) * 0.02).to(dtype).to(self.device)

        out = [] if self.out is None else [made(self.out)]
        base = None if self.base is None else made(self.base)
        floats = torch.full((self.rows[0], columns), 0.0078125, dtype=wide_dtype(self.work), device=self.device)
        ints = torch.full((self.rows[1], columns), 4321, dtype=torch.int32, device=self.device)
        return [*out, base, [made(d) for d in self.tensors], floats, ints]


def _write(
    kernel: Callable[..., Tensor],
    work: torch.dtype,
    out: Tensor,
    base: Tensor | None,
    tensors: list[Tensor],
    floats: Tensor,
    ints: Tensor,
) -> Tensor:
    merged = kernel(base, tensors, floats, ints)
    return out.copy_(merged if work == out.dtype else rounded(merged, work))


class Compiled:
    """The kernels of this process that are compiled, or on their way."""

    def __init__(self, worth: float = _WORTH) -> None:
        """`worth`: how many seconds plain torch may take for a kernel before it is compiled."""
        self._worth = worth
        self._seconds: dict[Signature, float] = {}
        self._ready: dict[Signature, Callable[..., Tensor]] = {}
        self._coming: dict[Signature, subprocess.Popen[bytes]] = {}
        self._begun: set[Signature] = set()

    def collect(self) -> None:
        """Take in the kernels whose compilation has ended; called between candidates."""
        for signature, process in list(self._coming.items()):
            if process.poll() is not None:
                self._arrived(signature)

    def find(self, signature: Signature) -> Callable[..., Tensor] | None:
        """The compiled function, or None while there is none."""
        return self._ready.get(signature)

    def spent(self, signature: Signature, seconds: float) -> None:
        """A kernel ran as plain torch for some seconds; compile it if that has become too much."""
        total = self._seconds[signature] = self._seconds.get(signature, 0.0) + seconds
        if total >= self._worth and signature not in self._begun:
            self._begun.add(signature)
            self._coming[signature] = _compiling(signature)

    def wait(self) -> None:
        """Until all kernels that are being compiled are ready."""
        for signature, process in list(self._coming.items()):
            process.wait()
            self._arrived(signature)

    def _arrived(self, signature: Signature) -> None:
        """The process that filled the cache has ended: take the kernel from there."""
        code = self._coming.pop(signature).returncode
        try:
            if code:
                raise RuntimeError(f"the compiler's process ended with {code}")
            self._ready[signature] = compile_(signature)
        except Exception as error:  # whatever a compiler fails with, plain torch still works
            _log.info("%s is not compiled: %s", signature.kernel.function, error)


def compile_(signature: Signature) -> Callable[..., Tensor]:
    """Compile for tensors of any size. To be called without gradients.

    Raises:
        RuntimeError: the compiled kernel does not give plain torch's numbers.
    """
    plain = signature.function()
    function = torch.compile(_own(plain), fullgraph=True, options=dict(_OPTIONS))
    example = signature.example()
    for argument in _flat(example):
        torch._dynamo.mark_dynamic(argument, 0)
    with torch.no_grad():
        found = function(*example).clone()
        if not _agree(found, plain(*example)):
            raise RuntimeError("compiled, it gives other numbers")
    return function


def _agree(found: Tensor, wanted: Tensor) -> bool:
    """Equal on the CPU; elsewhere floats may differ by a unit in the last place (a GPU's division)."""
    if found.device.type == "cpu" or not found.is_floating_point():
        return torch.equal(found, wanted)
    return torch.allclose(found.double(), wanted.double(), rtol=torch.finfo(found.dtype).eps, atol=0)


def _own(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function under a code object of its own: torch.compile keeps what it compiled by code object, and looks
    through all of it at each call."""

    def call(*arguments: Any) -> Tensor:
        return function(*arguments)

    call.__code__ = call.__code__.replace()
    return call


def _flat(arguments: list[Any]) -> list[Tensor]:
    """The arguments whose size is the piece's."""
    *outs, base, tensors, _, _ = arguments
    return [t for t in (*outs, base, *tensors) if t is not None]


def _compiling(signature: Signature) -> subprocess.Popen[bytes]:
    """A process that compiles the kernel into the cache; it dies with this one."""
    command = [sys.executable, "-m", __name__, json.dumps([torch.get_num_threads(), _told(signature)])]
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    atexit.register(process.kill)
    return process


def _told(signature: Signature) -> dict[str, Any]:
    """The signature as JSON."""
    names = {name: _name(getattr(signature, name)) for name in ("base", "work", "out")}
    options = [[key, _name(value)] for key, value in signature.kernel.options]
    return {
        **names, "function": signature.kernel.function, "options": options, "device": signature.device,
        "tensors": [_name(d) for d in signature.tensors], "rows": signature.rows,
    }  # fmt: skip


def _name(value: Any) -> Any:
    return str(value) if isinstance(value, torch.dtype) else list(value) if isinstance(value, tuple) else value


def _understood(told: dict[str, Any]) -> Signature:
    kernel = Kernel(told["function"], tuple((key, _value(value)) for key, value in told["options"]))
    base, work, out = (_value(told[name]) for name in ("base", "work", "out"))
    tensors = tuple(_value(name) for name in told["tensors"])
    return Signature(kernel, told["device"], base, tensors, work, out, tuple(told["rows"]))


def _value(told: Any) -> Any:
    if isinstance(told, str) and told.startswith("torch."):
        return getattr(torch, told.removeprefix("torch."))
    return tuple(told) if isinstance(told, list) else told


if __name__ == "__main__":
    threads, text = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    compile_(_understood(text))
