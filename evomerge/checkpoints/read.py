"""Reads stored bytes into new memory, not mapped: it leaves the process when the tensor is dropped, and a file that is
cut is an error, not the end of the process."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from evomerge.checkpoints import hub
from evomerge.checkpoints.headers import QuantizedTensor, TensorInfo
from evomerge.errors import InputError, Where

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 20


def read_tensor(info: TensorInfo, where: Where | None = None) -> torch.Tensor:
    """The tensor, in fresh memory on the CPU: as it is stored, or dequantized. Threads may read at the same time.

    Raises:
        InputError: the file is gone, cannot be read, has become shorter since it was opened, or holds codes that mean
            nothing.
    """
    import torch

    if isinstance(info, QuantizedTensor):
        try:
            return info.dequantized(partial(read_tensor, where=where))
        except IndexError:  # a group or a code that there is not
            problem = f"{info.file} is damaged: its weights cannot be dequantized"
            raise InputError(problem, "copy or download it again", where) from None
    tensor = torch.empty(info.shape, dtype=getattr(torch, info.dtype))
    if info.bytes:
        _fill(tensor.reshape(-1).view(torch.uint8).numpy().data, info, where)
    return tensor


def read_bytes(info: TensorInfo, where: Where | None = None) -> bytes:
    """The bytes of a small stored tensor, without torch. InputError as for `read_tensor`."""
    memory = bytearray(info.bytes)
    _fill(memoryview(memory), info, where)
    return bytes(memory)


def _fill(memory: memoryview, info: TensorInfo, where: Where | None) -> None:
    """Read a tensor's bytes into `memory`. InputError if they cannot be read, or are too few."""
    hub.arrive(info.file, where)
    done, count = 0, -1
    try:
        with info.file.open("rb", buffering=0) as stream:
            stream.seek(info.start)
            while done < len(memory) and count != 0:
                count = stream.readinto(memory[done:])
                done += count
    except OSError as error:
        problem = f"{info.file} cannot be read ({error.strerror or error})"
        raise InputError(problem, "copy or download it again", where) from None
    if done < len(memory):
        raise InputError(f"{info.file} is damaged: it has become shorter", "copy or download it again", where)


def same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two stored tensors are equal bit for bit. Of quantized ones, whether they are one."""
    if isinstance(one, QuantizedTensor) or isinstance(other, QuantizedTensor):
        return one == other
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    for info in (one, other):
        hub.arrive(info.file)
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        lengths = (min(_CHUNK, one.bytes - done) for done in range(0, one.bytes, _CHUNK))
        return all(first.read(length) == second.read(length) for length in lengths)
