"""Compiles kernels, once plain torch has cost more time than compiling would.

Compiling a kernel takes seconds, a candidate of a small model milliseconds. So kernels run as plain torch first. Then
another process compiles into torch's cache on disk, while this one goes on with plain torch and takes the kernel from
the cache once it is there. Without a working compiler plain torch stays.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import rounded, wide_dtype
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend

_log = logging.getLogger(__name__)
_WORTH = 2.0  # seconds in plain torch after which compiling begins
_ROWS = 5  # of an example
# Roundings to 16 bits in the middle of a formula are not optimized away, products not fused into sums, and values that
# are used twice stay in registers (the thresholds are torch's for when to put them into memory instead)
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
    """The kernel, device and dtypes that code is compiled for. `out` None: the kernel reduces to integers. `apart`: for
    each tensor of a `rows.Joint`, whether its rows are apart; None for flat tensors."""

    kernel: Kernel
    device: str
    base: torch.dtype | None
    tensors: tuple[torch.dtype, ...]
    work: torch.dtype
    out: torch.dtype | None
    rows: tuple[int, int]
    apart: tuple[bool, ...] | None = None

    @classmethod
    def of(
        cls,
        blend: Blend,
        device: str,
        work: torch.dtype,
        out: torch.dtype | None,
        apart: tuple[bool, ...] | None = None,
    ) -> Signature:
        base = None if blend.base is None else blend.base.dtype
        rows = len(blend.floats), len(blend.ints(0))
        return cls(blend.kernel, device, base, tuple(t.dtype for t in blend.tensors), work, out, rows, apart)

    def function(self) -> Callable[..., Tensor]:
        """``(out, base, tensors, floats, ints) -> out``, or without `out` where the kernel reduces."""
        bound = self.kernel.bound()
        return bound if self.out is None else functools.partial(_write, bound, self.work)

    def example(self, count: int = (1 << 16) + 5) -> list[Any]:
        """Arguments that fit: numbers of the size of weights, so that roundings show."""
        numbers, columns = torch.Generator().manual_seed(0), len(self.tensors)
        gaps = iter(self.apart or ())

        def random(dtype: torch.dtype) -> Tensor:
            if not dtype.is_floating_point:
                made = torch.randint(-(1 << 31), 1 << 31, (count,), generator=numbers).to(dtype).to(self.device)
            else:
                made = (torch.randn(count, generator=numbers) * 0.02).to(dtype).to(self.device)
            if self.apart is None:
                return made
            # Rows that are apart have a stride of their own, lest the compiler takes it for another's
            gap = next(gaps) * (next(strides) + 1)
            return made[: (length + gap) * _ROWS].view(_ROWS, length + gap)[:, :length]

        length, strides = count // _ROWS - columns - 3, itertools.count()
        out = [] if self.out is None else [random(self.out)]
        base = None if self.base is None else random(self.base)
        each = () if self.apart is None else (_ROWS, 1)
        floats = torch.full((self.rows[0], columns, *each), 0.0078125, dtype=wide_dtype(self.work), device=self.device)
        ints = torch.full((self.rows[1], columns, *each), 4321, dtype=torch.int32, device=self.device)
        return [*out, base, [random(d) for d in self.tensors], floats, ints]


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
    """Holds the compiled kernels of this process, and starts the compilation of further ones."""

    def __init__(self, worth: float = _WORTH) -> None:
        """`worth`: how many seconds plain torch may take for a kernel before it is compiled."""
        self._worth = worth
        self._seconds: dict[Signature, float] = {}
        self._ready: dict[Signature, Callable[..., Tensor]] = {}
        self._running: dict[Signature, subprocess.Popen[bytes]] = {}
        self._started: set[Signature] = set()

    def collect(self) -> None:
        """Take the kernels whose compilation has ended into use. Called between candidates."""
        for signature, process in list(self._running.items()):
            if process.poll() is not None:
                self._take(signature)

    def find(self, signature: Signature) -> Callable[..., Tensor] | None:
        """The compiled function, or None while there is none."""
        return self._ready.get(signature)

    def spent(self, signature: Signature, seconds: float) -> None:
        """Count seconds for which a kernel ran as plain torch; start to compile it when they reach `worth`."""
        total = self._seconds[signature] = self._seconds.get(signature, 0.0) + seconds
        if total >= self._worth:
            self._start(signature)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Compiles each kernel that is run meanwhile, however little time it has taken."""
        worth, self._worth = self._worth, 0.0
        try:
            yield
        finally:
            self._worth = worth

    def accompany(self, signature: Signature) -> None:
        """Start to compile a kernel for rows, if it is worth compiling for flat tensors."""
        if replace(signature, apart=None) in self._started:
            self._start(signature)

    @property
    def is_busy(self) -> bool:
        """Whether kernels are being compiled."""
        return bool(self._running)

    def wait(self) -> None:
        """Wait until all kernels that are being compiled are ready."""
        for signature, process in list(self._running.items()):
            process.wait()
            self._take(signature)

    def _start(self, signature: Signature) -> None:
        if signature not in self._started:
            self._started.add(signature)
            self._running[signature] = _start_compiler(signature)

    def _take(self, signature: Signature) -> None:
        """Take a kernel from the cache, which a process that has ended was to fill."""
        code = self._running.pop(signature).returncode
        try:
            if code:
                raise RuntimeError(f"the compiler's process ended with {code}")
            self._ready[signature] = compile_(signature)
        except Exception as error:  # a compiler may fail with anything; plain torch still works
            _log.info("%s is not compiled: %s", signature.kernel.function, error)


def compile_(signature: Signature) -> Callable[..., Tensor]:
    """Compile a kernel for tensors of any size. To be called without gradients.

    Raises:
        RuntimeError: the compiled kernel does not give plain torch's numbers.
    """
    plain = signature.function()
    function = torch.compile(_with_own_code(plain), fullgraph=True, options=dict(_OPTIONS))
    example = signature.example()
    for argument, dimension in _sizes(example, signature):
        torch._dynamo.mark_dynamic(argument, dimension)
    with torch.no_grad():
        compiled = function(*example).clone()
        if not _agree(compiled, plain(*example)):
            raise RuntimeError("compiled, it gives other numbers")
    return function


def _agree(compiled: Tensor, plain: Tensor) -> bool:
    """Whether two results are equal; on a GPU floats may differ by a unit in the last place (its division)."""
    if compiled.device.type == "cpu" or not compiled.is_floating_point():
        return torch.equal(compiled, plain)
    return torch.allclose(compiled.double(), plain.double(), rtol=torch.finfo(compiled.dtype).eps, atol=0)


def _with_own_code(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function under a code object of its own: torch.compile keeps what it compiled by code object, and looks
    through all of it at each call."""

    def call(*arguments: Any) -> Tensor:
        return function(*arguments)

    call.__code__ = call.__code__.replace()
    return call


def _sizes(arguments: list[Any], signature: Signature) -> Iterator[tuple[Tensor, int]]:
    """The dimensions of arguments that differ from call to call: those of the chunk and, of rows, how many they are."""
    *outs, base, tensors, floats, ints = arguments
    for tensor in (*outs, base, *tensors):
        if tensor is not None:
            yield from ((tensor, dimension) for dimension in range(tensor.dim()))
    if signature.apart is not None:
        yield from ((floats, 2), (ints, 2))


def _start_compiler(signature: Signature) -> subprocess.Popen[bytes]:
    """Start a process that compiles the kernel into the cache. It dies with this one."""
    command = [sys.executable, "-m", __name__, json.dumps([torch.get_num_threads(), _to_json(signature)])]
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
    atexit.register(process.kill)
    return process


def _to_json(signature: Signature) -> dict[str, Any]:
    """The signature as JSON."""
    names = {name: _value_to_json(getattr(signature, name)) for name in ("base", "work", "out")}
    options = [[key, _value_to_json(value)] for key, value in signature.kernel.options]
    return {
        **names, "function": signature.kernel.function, "options": options, "device": signature.device,
        "tensors": [_value_to_json(d) for d in signature.tensors], "rows": signature.rows,
        "apart": signature.apart,
    }  # fmt: skip


def _value_to_json(value: Any) -> Any:
    return str(value) if isinstance(value, torch.dtype) else list(value) if isinstance(value, tuple) else value


def _from_json(data: dict[str, Any]) -> Signature:
    """The inverse of `_to_json`."""
    kernel = Kernel(data["function"], tuple((key, _value_from_json(value)) for key, value in data["options"]))
    base, work, out = (_value_from_json(data[name]) for name in ("base", "work", "out"))
    tensors = tuple(_value_from_json(name) for name in data["tensors"])
    apart = None if data["apart"] is None else tuple(data["apart"])
    return Signature(kernel, data["device"], base, tensors, work, out, tuple(data["rows"]), apart)


def _value_from_json(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."))
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    threads, data = json.loads(sys.argv[1])
    torch.set_num_threads(threads)
    compile_(_from_json(data))
