"""GGUF, llama.cpp's format: one file with all weights under names of its own, next to a base of the same model.

The header is read here (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The package `gguf` maps names of
transformers to GGUF's (`tensor_mapping`) and dequantizes (`quants.dequantize`). What llama.cpp's converter changes is
changed back: it orders the rows of Llama's query and key matrices for its rotary embeddings, and adds one to Gemma's
norms.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from evomerge.checkpoints.headers import QuantizedTensor, TensorInfo
from evomerge.checkpoints.quantized.packed import Tensors, spans, torch_dtype
from evomerge.checkpoints.structure import configured_layers, is_head, text_config
from evomerge.errors import InputError, Where
from evomerge.escape import shortened
from evomerge.safety.read import opened

if TYPE_CHECKING:
    from torch import Tensor

ENDING = ".gguf"
_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
"""The model types that are read, and GGUF's name of each."""
_ROTATED = {"self_attn.q_proj.": "num_attention_heads", "self_attn.k_proj.": "num_key_value_heads"}
"""Llama's matrices whose rows are ordered otherwise, and the setting with their number of heads."""
_MEND = "copy or download it again"
_MOST = 1 << 20  # tensors, or settings
_LONGEST = 1 << 24  # bytes of a text
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a setting by its type; 8 is a text, 9 an array."""
_TEXT, _ARRAY = 8, 9
_MAGIC, _VERSIONS, _DEEPEST = b"GGUF", (2, 3), 4


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file: its shape as in torch, ggml's number of its type, and its first byte in the file."""

    shape: tuple[int, ...]
    kind: int
    start: int


@dataclass(frozen=True, kw_only=True)
class GgufMatrix(QuantizedTensor):
    """A tensor stored as `kind` in the bytes `codes`. `heads`: the number of heads by which its rows are ordered, or 0;
    `shift`: what was added to it."""

    codes: TensorInfo
    kind: int
    heads: int
    shift: float

    def dequantized(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        import torch
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        width = self.shape[-1]
        raw = read(self.codes).numpy().reshape(self.elements // width, -1)
        result = torch.empty(len(raw), width, dtype=torch_dtype(self.dtype))
        for span in spans(len(raw), width):
            values = torch.from_numpy(dequantize(raw[span], GGMLQuantizationType(self.kind)).reshape(-1, width))
            result[span] = values - self.shift if self.shift else values
        result = result.reshape(self.shape)
        return result[_order(len(result), self.heads)] if self.heads else result


def _order(rows: int, heads: int) -> Tensor:
    """The stored row of each row: a head's rows 0, 1, 2, ... are stored as 0, half, 1, half + 1, ..."""
    import torch

    return torch.arange(rows).reshape(heads, -1, 2).transpose(1, 2).reshape(-1)


def read_gguf(
    file: Path, config: Mapping[str, Any], base: Mapping[str, TensorInfo], dtype: str, where: Where | None = None
) -> tuple[Tensors, str]:
    """The tensors of a GGUF file under the names of its base, and how they are stored, in words.

    Args:
        config: the base's configuration.
        base: the base's tensors.
        dtype: of the result.

    Raises:
        InputError: the file is damaged, or holds another model; or the package gguf is not installed.
    """

    def error(problem: str, mend: str = _MEND) -> InputError:
        return InputError(f"{file} {problem}", mend, where)

    try:
        from gguf import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map
    except ImportError:
        raise error("needs the package gguf", "install evomerge[gguf]") from None
    kind = text_config(config).get("model_type")
    name = _ARCHITECTURES.get(str(kind))
    if name is None:
        raise error(f"cannot be read for a {kind} model", f"readable are {', '.join(_ARCHITECTURES)}")
    try:
        found, tensors, size = _header(file, where)
    except (_Invalid, struct.error, UnicodeDecodeError) as problem:
        raise error(f"is damaged: its header is not valid ({problem})") from None
    if found != name:
        raise error(
            f"holds a model of the kind {shortened(found, 40)}, the base is {kind}", "give the file of its base"
        )
    architecture = next(number for number, known in MODEL_ARCH_NAMES.items() if known == name)
    names = get_tensor_name_map(architecture, configured_layers(config) or 0)
    result: Tensors = {}
    kinds: dict[str, None] = {}
    for target, info in base.items():
        stored = tensors.get(names.get_name(target, try_suffixes=(".weight", ".bias")) or "")
        if stored is None:
            if is_head(target):
                continue  # tied to the embeddings
            raise error(f"lacks {target} of the base", "give the file of its base")
        if stored.shape != info.shape:
            raise error(f"has {target} as {list(stored.shape)}, the base as {list(info.shape)}", "give its base")
        if not _is_readable(stored.kind):
            raise error(f"has {target} in a type that gguf does not dequantize ({stored.kind})", "give another file")
        block, wide = GGML_QUANT_SIZES[GGMLQuantizationType(stored.kind)]
        count = math.prod(stored.shape) // block * wide
        if not count or stored.shape[-1] % block or stored.start + count > size:
            raise error(f"is damaged: {target} is cut off")
        kinds[GGMLQuantizationType(stored.kind).name] = None
        result[target] = GgufMatrix(
            shape=info.shape,
            dtype=dtype,
            file=file,
            start=stored.start,
            codes=TensorInfo((count,), "uint8", file, stored.start),
            kind=stored.kind,
            heads=_heads(target, config) if name == "llama" else 0,
            shift=1.0 if name.startswith("gemma") and target.endswith("norm.weight") else 0.0,
        )
    return result, f"GGUF ({', '.join(sorted(kinds))})"


@lru_cache(maxsize=64)
def _is_readable(kind: int) -> bool:
    """Whether the package dequantizes a type."""
    import numpy
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        number = GGMLQuantizationType(kind)
        dequantize(numpy.zeros((1, GGML_QUANT_SIZES[number][1]), numpy.uint8), number)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True


def _heads(target: str, config: Mapping[str, Any]) -> int:
    text = text_config(config)
    key = next((key for part, key in _ROTATED.items() if part in target), None)
    heads = 0 if key is None else text.get(key) or text.get("num_attention_heads")
    return heads if isinstance(heads, int) else 0


class _Invalid(ValueError):
    """A header is not as the format wants it."""


def _header(file: Path, where: Where | None) -> tuple[str, dict[str, GgufTensor], int]:
    """The architecture, the tensors by name, and the file's size. Raises _Invalid, struct.error, UnicodeDecodeError."""
    with opened(file, where) as (stream, size):
        magic, version, count, settings = struct.unpack("<4sIQQ", stream.read(24))
        if magic != _MAGIC or version not in _VERSIONS or count > _MOST or settings > _MOST:
            raise _Invalid(f"version {version}")
        read = _Reader(stream, size)
        told = dict(read.setting() for _ in range(settings))
        listed = [read.tensor() for _ in range(count)]
        position = stream.tell()
    alignment = told.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment < 1 << 20:
        raise _Invalid("its alignment")
    data = -(-position // alignment) * alignment
    tensors = {name: GgufTensor(shape, kind, data + offset) for name, shape, kind, offset in listed}
    return str(told.get("general.architecture")), tensors, size


class _Reader:
    """Reads the parts of a header one after the other. Arrays are passed over."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size = stream, size

    def setting(self) -> tuple[str, str | int | None]:
        """A key, and its value if that is a text or a whole number."""
        return self._text(), self._value(self._number("<I"))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and place of a tensor."""
        name, dimensions = self._text(), self._number("<I")
        if dimensions > 4:
            raise _Invalid(f"{shortened(name)} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        return name, shape, self._number("<I"), self._number("<Q")

    def _value(self, kind: int, depth: int = 0) -> str | int | None:
        if kind == _TEXT:
            return self._text()
        if kind == _ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            if depth > _DEEPEST or count > self._size:
                raise _Invalid("an array of more than it holds")
            if inner in _SIZES:
                self._skip(count * _SIZES[inner])
                return None
            for _ in range(count):
                if inner == _TEXT:
                    self._skip(self._number("<Q"))
                else:
                    self._value(inner, depth + 1)
            return None
        if kind not in _SIZES:
            raise _Invalid(f"a setting of type {kind}")
        if kind in (4, 5):
            return self._number("<I" if kind == 4 else "<i")
        self._skip(_SIZES[kind])
        return None

    def _text(self) -> str:
        length = self._number("<Q")
        if length > _LONGEST:
            raise _Invalid("a text of more than 16 MB")
        return self._stream.read(length).decode("utf-8")

    def _number(self, form: str) -> int:
        value: int = struct.unpack(form, self._stream.read(struct.calcsize(form)))[0]
        return value

    def _skip(self, count: int) -> None:
        if self._stream.tell() + count > self._size:
            raise _Invalid("it is cut off")
        self._stream.seek(count, 1)
