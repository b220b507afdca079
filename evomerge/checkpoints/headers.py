"""Reads the headers of safetensors files, without their weights and without torch.

Format: https://github.com/huggingface/safetensors#format (8 bytes of little-endian length, JSON, then the bytes).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import InputError, Where

_LONGEST_HEADER = 100_000_000

# safetensors' name -> (torch's name, bytes an element)
DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
FLOATS = ("float64", "float32", "float16", "bfloat16")
SIZES = dict(DTYPES.values())
WORDS = {name: word for word, (name, _) in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: its shape, its dtype by torch's name, the file that holds it, and its first byte there."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * SIZES[self.dtype]


def read_header(file: Path, where: Where | None = None) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, by name.

    Raises:
        InputError: the file is truncated, or is no safetensors file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LONGEST_HEADER + 1
        if length > _LONGEST_HEADER:
            raise _corrupt(file, "it is no safetensors file", where)
        text = stream.read(length)
    if len(text) < length:
        raise _corrupt(file, f"it is cut off inside its header ({size} bytes)", where)
    try:
        header = json.loads(text)
        tensors = {k: _info(file, v, 8 + length) for k, v in header.items() if k != "__metadata__"}
        end = max((int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _corrupt(file, "its header is not valid", where) from None
    if size != 8 + length + end:
        raise _corrupt(file, f"it should have {8 + length + end} bytes but has {size}", where)
    return tensors


def _info(file: Path, entry: dict[str, Any], data: int) -> TensorInfo:
    """A tensor from its entry in the header. `data`: the position at which the tensors start."""
    begin, end = (int(offset) for offset in entry["data_offsets"])
    info = TensorInfo(tuple(int(n) for n in entry["shape"]), DTYPES[entry["dtype"]][0], file, data + begin)
    if begin < 0 or end - begin != info.bytes:
        raise ValueError("offsets do not fit the shape")
    return info


def _corrupt(file: Path, why: str, where: Where | None) -> InputError:
    return InputError(f"{file} is damaged: {why}", "copy or download it again", where)
