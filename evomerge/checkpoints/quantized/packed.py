"""What the readers of all formats share: a quantized checkpoint as it is stored, and codes of some bits in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.headers import CHUNK, FLOATS, TensorInfo
from evomerge.checkpoints.read import read_bytes
from evomerge.checkpoints.structure import is_embedding, is_head
from evomerge.errors import InputError, Where

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Tensors = dict[str, TensorInfo]
BITS = range(1, 9)
_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Models whose layers store their matrices as [inputs, outputs] (transformers' Conv1D)."""
_MEND = "copy or download it again, or dequantize it first"


@dataclass(frozen=True)
class Packed:
    """A quantized checkpoint as it is stored.

    Attributes:
        settings: its quantization_config.
        stored: the stored tensors by name.
        dtype: of the tensors once they are dequantized.
        model_type: of its configuration.
    """

    folder: Path
    settings: Mapping[str, Any]
    stored: Mapping[str, TensorInfo]
    dtype: str
    model_type: str | None = None
    where: Where | None = None

    def error(self, problem: str, mend: str = _MEND) -> InputError:
        return InputError(f"{self.folder}: {problem}", mend, self.where)

    def part(self, name: str, dtypes: Iterable[str], dimensions: Iterable[int]) -> TensorInfo:
        """The stored tensor `name`. InputError if it is missing, or of another kind."""
        info = self.stored.get(name)
        if info is None:
            raise self.error(f"it lacks {name}")
        if info.dtype not in dtypes or len(info.shape) not in dimensions or 0 in info.shape:
            raise self.error(f"{name} is {info.dtype} {list(info.shape)}, which the format does not have")
        return info

    def scale(self, name: str, dimensions: Iterable[int] = (2,)) -> TensorInfo:
        """The stored scales `name`, of floats."""
        return self.part(name, FLOATS, dimensions)

    def small(self, info: TensorInfo) -> bytes:
        """The bytes of a small stored tensor."""
        if info.bytes > 1 << 20:
            raise self.error(f"a tensor of settings has {info.bytes} bytes")
        return read_bytes(info, self.where)

    def is_transposed(self, name: str) -> bool:
        """Whether the model stores this matrix as [inputs, outputs], and the format the other way round."""
        return self.model_type in _CONV1D and not is_head(name) and not is_embedding(name)


@dataclass(frozen=True)
class Unpacked:
    """The tensors that a quantized checkpoint stands for, by name, and how it is quantized, in words."""

    tensors: Tensors
    words: str


def rest(packed: Packed, used: Iterable[str], dropped: tuple[str, ...] = ()) -> Tensors:
    """The stored tensors that belong to no quantized one; without those whose names end in one of `dropped`."""
    taken = set(used)
    return {n: i for n, i in packed.stored.items() if n not in taken and not (dropped and n.endswith(dropped))}


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of a name such as "bfloat16"."""
    import torch

    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def spans(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows of `width` elements, each of them of some million elements at most."""
    step = max(1, CHUNK // max(1, width))
    return (slice(start, min(count, start + step)) for start in range(0, count, step))


def codes(words: Tensor, bits: int) -> Tensor:
    """The codes in a matrix [rows, words] of 32-bit words: [rows, words * 32 / bits], each from 0 to 2^bits - 1.

    Codes lie one behind the other from the lowest bit of the first word on. If `bits` does not divide 32, some lie in
    two words: 32 codes fill `bits` words.
    """
    import torch

    mask, rows = (1 << bits) - 1, words.shape[0]
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        return ((words[:, :, None] >> shifts) & mask).reshape(rows, -1)
    words = torch.nn.functional.pad(words, (0, -words.shape[1] % bits)).reshape(rows, -1, bits)
    columns = []
    for i in range(32):
        word, shift = divmod(i * bits, 32)
        low = (words[:, :, word] >> shift) & ((1 << min(bits, 32 - shift)) - 1)
        if shift + bits > 32:
            low = low | (words[:, :, word + 1] << (32 - shift)) & mask
        columns.append(low)
    return torch.stack(columns, dim=-1).reshape(rows, -1)
