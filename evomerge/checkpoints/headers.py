"""Reads the headers of safetensors files, without their weights and without torch.

Format: https://github.com/huggingface/safetensors#format (8 bytes of little-endian length, JSON, then the bytes). What
safetensors refuses is refused here, and a few things more that it lets pass and that nothing writes: names that do not
print, and a tensor that is listed twice.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import InputError, Where
from evomerge.escape import shortened
from evomerge.safety.read import opened

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_HEADER = 100_000_000
_LONGEST_NAME = 1_000
_MOST_DIMENSIONS = 64
"""The most that NumPy takes, through which the bytes go."""
_MOST_ELEMENTS = 2**63 - 1

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
CHUNK = 1 << 22
"""Elements that are dequantized at a time: what is needed for them besides the result stays small."""
_WIDEST = 24  # bytes for each of them: codes, scales and products in 32 bits
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

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read for it."""
        return (self.file,)

    @property
    def reading(self) -> int:
        """The bytes that are taken while it is read, with its own."""
        return self.bytes


@dataclass(frozen=True, kw_only=True)
class QuantizedTensor(TensorInfo):
    """A tensor that is stored quantized, in several stored tensors, and dequantized each time it is read (`quantized/`
    has a class for each format). Shape and dtype are those of the result, file and start those of the stored weight."""

    @property
    def parts(self) -> tuple[TensorInfo, ...]:
        """The stored tensors."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if isinstance(value, TensorInfo))

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(part.file for part in self.parts))

    @property
    def reading(self) -> int:
        return self.bytes + sum(part.bytes for part in self.parts) + min(self.elements, CHUNK) * _WIDEST

    def dequantized(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        """The tensor, in new memory. `read` reads a stored one."""
        raise NotImplementedError


class _Invalid(ValueError):
    """A header is not as the format wants it; the message says what is wrong."""


def read_header(file: Path, where: Where | None = None) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, by name, in the order of the header.

    Raises:
        InputError: the file cannot be read, is truncated, or is no safetensors file.
    """
    with opened(file, where) as (stream, size):
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LONGEST_HEADER + 1
        check_length(file, length, where)
        text = stream.read(length)
    return parse_header(file, text, length, size, where)


def check_length(file: Path, length: int, where: Where | None = None) -> None:
    """InputError if a header of so many bytes is none."""
    if length > _LONGEST_HEADER:
        raise _corrupt(file, "it is no safetensors file", where)


def parse_header(file: Path, text: bytes, length: int, size: int, where: Where | None = None) -> dict[str, TensorInfo]:
    """The tensors of a header. `text`: what was read of its `length` bytes; `size`: the file's bytes.

    Raises:
        InputError: it is cut off, not valid, or does not fit the file's size.
    """
    if len(text) < length:
        raise _corrupt(file, f"it is cut off inside its header ({size} bytes)", where)
    try:
        tensors = _tensors(file, _parsed(text), 8 + length)
    except _Invalid as error:
        raise _corrupt(file, f"its header is not valid ({error})", where) from None
    end = 8 + length + sum(info.bytes for info in tensors.values())
    if size != end:
        raise _corrupt(file, f"it should have {end} bytes but has {size}", where)
    return tensors


def _parsed(text: bytes) -> dict[str, Any]:
    """The header as an object. Raises _Invalid."""
    try:
        # The format wants UTF-8; json would guess UTF-16 and UTF-32 as well.
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_number)
    except RecursionError:
        raise _Invalid("nested too deep") from None
    except _Invalid:
        raise
    except ValueError as error:
        raise _Invalid(f"no JSON in UTF-8: {error}") from None
    if not isinstance(header, dict):
        raise _Invalid("no JSON object")
    return header


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Invalid(f"{shortened(twice)!r} is listed twice")
    return result


def _no_number(word: str) -> Any:
    raise _Invalid(f"{word} is no number of JSON")


def _tensors(file: Path, header: Mapping[str, Any], data: int) -> dict[str, TensorInfo]:
    """The tensors of a header. `data`: the position at which the tensors start. Raises _Invalid."""
    metadata = header.get("__metadata__")
    if metadata is not None and not _is_text_map(metadata):
        raise _Invalid("__metadata__ is no mapping of texts")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = {name: _info(file, name, entry, data) for name, entry in entries.items()}
    # Without holes: each tensor begins where the last one ended
    end = data
    for name in sorted(tensors, key=lambda n: (tensors[n].start, tensors[n].bytes)):
        if tensors[name].start != end:
            what = "overlaps another tensor" if tensors[name].start < end else "comes after a hole"
            raise _Invalid(f"{name} {what} at byte {tensors[name].start - data}")
        end += tensors[name].bytes
    return tensors


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _info(file: Path, name: str, entry: Any, data: int) -> TensorInfo:
    """A tensor from its entry in the header. Raises _Invalid."""
    if not is_name(name):
        raise _Invalid(f"{shortened(name)!r} is no name of a tensor")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise _Invalid(f"{name} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _Invalid(f"{name} has the unknown dtype {shortened(dtype, 40)}")
    if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS or math.prod(n or 1 for n in shape) > _MOST_ELEMENTS:
        raise _Invalid(f"{name} has the shape {shortened(shape, 80)}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise _Invalid(f"{name} has the data_offsets {shortened(offsets, 80)}")
    info = TensorInfo(tuple(shape), DTYPES[dtype][0], file, data + offsets[0])
    if offsets[1] - offsets[0] != info.bytes:
        raise _Invalid(f"{name} has {offsets[1] - offsets[0]} bytes for the shape {shape} of {dtype}")
    return info


def is_name(name: str) -> bool:
    """Whether a text can be a tensor's name."""
    return bool(name) and len(name) <= _LONGEST_NAME and name.isprintable()


def _are_counts(values: Any) -> bool:
    """Whether it is a list of whole numbers from 0; JSON's true is none."""
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


def _corrupt(file: Path, why: str, where: Where | None) -> InputError:
    return InputError(f"{file} is damaged: {why}", "copy or download it again", where)
