"""compressed-tensors, as llm-compressor writes it (quant_method compressed-tensors): packed integers, 8-bit integers
and floats, 4-bit floats (NVFP4, MXFP4).

W = (q - zero point) * scale in the scales' dtype (compressed-tensors 0.20, `dequantize`): a scale for the tensor, each
row, each group of inputs, or each block. NVFP4: the scale of a group is first divided by that of the tensor.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.headers import FLOATS, QuantizedTensor, TensorInfo
from evomerge.checkpoints.quantized.fp8 import EIGHT_BITS, values
from evomerge.checkpoints.quantized.packed import BITS, Packed, Tensors, Unpacked, codes, rest, spans, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

_PARTS = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_global_scale", "weight_g_idx")
_ACTIVATIONS = tuple(
    f".{kind}_{part}"
    for kind in ("input", "output", "q", "k", "v")
    for part in ("scale", "zero_point", "global_scale", "g_idx")
)
"""Endings of scales of activations and caches, which the weights do not have."""
_REFUSED = ("sparse-24-bitmask", "sparse-bitmask", "marlin-24")


@dataclass(frozen=True, kw_only=True)
class GridScaled(QuantizedTensor):
    """A matrix [rows, columns] with a scale for each `block` (rows, columns) of it, or for each group of `groups`.

    Attributes:
        codes: the matrix as stored: 8-bit numbers, 4-bit floats in bytes, or integers of `bits` bits in words.
        scale: of every block; bytes are exponents of two.
        zeros: zero points of every block, in words [rows * bits / 32, groups] where the codes are.
        whole: the scale of the tensor, by which the others are divided.
        groups: the group of each column, in place of equal groups.
    """

    codes: TensorInfo
    scale: TensorInfo
    zeros: TensorInfo | None
    whole: TensorInfo | None
    groups: TensorInfo | None
    bits: int | None
    block: tuple[int, int]

    def dequantized(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        import torch

        rows, columns = self.shape
        down, across = -(-rows // self.block[0]), -(-columns // self.block[1])
        stored, scale = read(self.codes), self._scale(read)
        grid = (len(scale) if scale.ndim == 2 else down, scale.shape[-1] if scale.ndim == 2 else across)
        scale = scale.reshape(grid)
        zeros = self._zeros(read, grid)
        place = self._columns(read, columns, grid[1])
        result = torch.empty(self.shape, dtype=torch_dtype(self.dtype))
        for span in spans(rows, columns):
            factors = scale[torch.arange(span.start, span.stop) // self.block[0]][:, place]
            numbers = self._numbers(stored[span], columns).to(scale.dtype)
            if zeros is not None:
                shifts = zeros[torch.arange(span.start, span.stop) // self.block[0]][:, place]
                numbers = numbers - shifts.to(scale.dtype)
            product = numbers * factors
            result[span] = product.to(torch.bfloat16) if stored.dtype == torch.uint8 else product
        return result

    def _scale(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        import torch

        scale = read(self.scale)
        if scale.dtype == torch.uint8:  # OCP Microscaling: a power of two
            scale = 2.0 ** (scale.to(torch.int32) - 127).to(torch.bfloat16)
        elif self.scale.dtype in EIGHT_BITS:
            scale = scale.to(torch.bfloat16)
        return scale if self.whole is None else scale / read(self.whole)

    def _zeros(self, read: Callable[[TensorInfo], Tensor], grid: tuple[int, int]) -> Tensor | None:
        if self.zeros is None:
            return None
        stored = read(self.zeros)
        if self.bits is None or self.zeros.dtype != "int32":
            return stored.reshape(grid)
        return codes(stored.T.contiguous(), self.bits).T[: grid[0]] - (1 << self.bits - 1)

    def _columns(self, read: Callable[[TensorInfo], Tensor], columns: int, across: int) -> Tensor | slice:
        """The column of the scales that each column of the matrix has."""
        import torch

        if across == 1:
            return slice(None)
        groups = None if self.groups is None else read(self.groups).to(torch.int64)
        if groups is None or bool((groups < 0).any()):
            return torch.arange(columns) // self.block[1]
        return groups

    def _numbers(self, stored: Tensor, columns: int) -> Tensor:
        """Codes as numbers."""
        import torch

        if self.bits is not None:
            return codes(stored, self.bits)[:, :columns] - (1 << self.bits - 1)
        return values(stored) if stored.dtype == torch.uint8 else stored


def read(packed: Packed) -> Unpacked:
    """The tensors of a checkpoint in this format. Raises InputError."""
    sparsity = packed.settings.get("sparsity_config")
    sparse = sparsity.get("format") if isinstance(sparsity, dict) else None
    kinds = [kind for kind in (packed.settings.get("format"), sparse) if kind in _REFUSED]
    if kinds:
        raise packed.error(f"its weights are stored sparsely ({kinds[0]})", "give the uncompressed model")
    if packed.settings.get("transform_config"):
        raise packed.error("its activations are transformed (transform_config)", "give the uncompressed model")
    tensors: Tensors = {}
    used, words = set[str](), set[str]()
    for name in packed.stored:
        module, _, part = name.rpartition(".")
        if part != "weight_scale":
            continue
        if f"{module}.weight_packed" in packed.stored:
            tensor, kind = _packed_matrix(packed, module)
        elif packed.stored.get(f"{module}.weight") is not None and _is_small(packed.stored[f"{module}.weight"]):
            tensor, kind = _plain_matrix(packed, module)
        else:
            used.add(name)  # the scale of a weight that was not compressed
            continue
        tensors[f"{module}.weight"] = tensor
        used |= {f"{module}.weight", *(f"{module}.{part}" for part in _PARTS)}
        words.add(kind)
    told = f"compressed-tensors, {', '.join(sorted(words))}" if words else ""
    return Unpacked({**rest(packed, used, _ACTIVATIONS), **tensors}, told)


def _is_small(info: TensorInfo) -> bool:
    return info.dtype in (*EIGHT_BITS, "int8")


def _packed_matrix(packed: Packed, module: str) -> tuple[GridScaled, str]:
    """A matrix whose codes are packed into words (integers) or bytes (4-bit floats)."""
    stored = packed.part(f"{module}.weight_packed", ("int32", "uint8"), (2,))
    rows, wide = stored.shape
    if stored.dtype == "uint8":
        whole = packed.stored.get(f"{module}.weight_global_scale")
        if whole is not None and whole.elements != 1:
            raise packed.error(f"{module}.weight_global_scale has {whole.elements} numbers")
        kind = "4-bit floats (MXFP4)" if whole is None else "4-bit floats (NVFP4)"
        return _matrix(packed, module, stored, (rows, 2 * wide), whole=whole), kind
    size = packed.part(f"{module}.weight_shape", ("int64", "int32"), (1,))
    if size.elements != 2:
        raise packed.error(f"{module}.weight_shape has {size.elements} numbers")
    shape = struct.unpack("<2q" if size.dtype == "int64" else "<2i", packed.small(size))
    weights = _weights_of(packed, module)
    bits = weights.get("num_bits")
    if bits not in BITS or shape[0] != rows or not 0 < shape[1] < 2**31 or -(-shape[1] * bits // 32) != wide:
        raise packed.error(f"{module} has codes {list(stored.shape)} for a matrix {list(shape)} of {bits} bits")
    zeros = None if weights.get("symmetric", True) else f"{module}.weight_zero_point"
    return _matrix(packed, module, stored, shape, bits, zeros), f"integers of {bits} bits"


def _plain_matrix(packed: Packed, module: str) -> tuple[GridScaled, str]:
    """A matrix of 8-bit numbers."""
    stored = packed.part(f"{module}.weight", (*EIGHT_BITS, "int8"), (2,))
    zeros = f"{module}.weight_zero_point"
    shifted = zeros in packed.stored and not _weights_of(packed, module).get("symmetric", True)
    kind = "integers of 8 bits" if stored.dtype == "int8" else "8-bit floats"
    return _matrix(packed, module, stored, stored.shape, None, zeros if shifted else None), kind


def _matrix(
    packed: Packed,
    module: str,
    stored: TensorInfo,
    shape: tuple[int, int] | tuple[int, ...],
    bits: int | None = None,
    zeros: str | None = None,
    whole: TensorInfo | None = None,
) -> GridScaled:
    rows, columns = shape
    scale = packed.part(f"{module}.weight_scale", (*FLOATS, *EIGHT_BITS, "uint8"), (0, 1, 2))
    # One for the tensor, one for each row, or a grid of them
    grid = (1, 1) if scale.elements == 1 else scale.shape if len(scale.shape) == 2 else (scale.elements, 1)
    down, across = grid
    height, width = _blocks(packed, module)
    block = (_length(rows, down, height), _length(columns, across, width))
    if not all(block):
        raise packed.error(f"{module}.weight is {list(shape)}, and its scales are {list(scale.shape)}")
    zero_points = None if zeros is None else packed.part(zeros, ("int32", "int8", *EIGHT_BITS, *FLOATS), (0, 1, 2))
    if zero_points is not None:
        in_words = bits is not None and zero_points.dtype == "int32"
        expected = -(-down * (bits or 0) // 32) * across if in_words else scale.elements
        if zero_points.elements != expected:
            raise packed.error(f"{module} has {zero_points.elements} zero points for {scale.elements} scales")
    groups = packed.stored.get(f"{module}.weight_g_idx")
    if groups is not None and (groups.shape != (columns,) or groups.dtype not in ("int32", "int64")):
        raise packed.error(f"{module}.weight_g_idx is {groups.dtype} {list(groups.shape)}")
    return GridScaled(
        shape=(rows, columns),
        dtype=packed.dtype,
        file=stored.file,
        start=stored.start,
        codes=stored,
        scale=scale,
        zeros=zero_points,
        whole=whole,
        groups=groups,
        bits=bits,
        block=block,
    )


def _length(size: int, count: int, configured: int | None) -> int:
    """The length of `count` blocks of `size` rows or columns: the configured one if it makes as many, else that of
    equal ones, else 0."""
    if configured and count > 1 and -(-size // configured) == count:
        return configured
    return size // count if count and size % count == 0 else 0


def _blocks(packed: Packed, module: str) -> tuple[int | None, int | None]:
    """The configured lengths of blocks of rows and columns."""
    shape = _weights_of(packed, module).get("block_structure")
    if isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape):
        return shape[0], shape[1]
    return None, None


def _weights_of(packed: Packed, module: str) -> Mapping[str, Any]:
    """How a module's weights are quantized, by the group of the configuration that names it, else by one that names its
    class (all of them are linear layers)."""
    groups = packed.settings.get("config_groups")
    groups = [g for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    listed = [(g, t) for g in groups for t in _texts(g.get("targets"))]
    group = next((g for g, t in listed if _names(t, module)), None)
    group = group or next((g for g, t in listed if t.isidentifier()), groups[0] if len(groups) == 1 else {})
    weights = group.get("weights")
    return weights if isinstance(weights, dict) else {}


def _texts(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _names(target: str, module: str) -> bool:
    """Whether a target (a name, or `re:` and a pattern at its beginning) is the module."""
    if not target.startswith("re:"):
        return target == module
    try:
        return re.match(target.removeprefix("re:"), module) is not None
    except re.error:
        return False
