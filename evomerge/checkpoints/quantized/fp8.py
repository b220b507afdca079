"""8-bit floats with a scale for each block, row or tensor: DeepSeek, Qwen, Mistral (quant_method fp8, fbgemm_fp8).

W = q * s in float32, rounded once (transformers, `Fp8Dequantize`). Experts of DeepSeek-V4 are 4-bit floats (e2m1), two
in a byte, with a scale for each 32. Scales without mantissa (e8m0), and bytes in their place, are powers of two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.checkpoints.headers import FLOATS, QuantizedTensor, TensorInfo
from evomerge.checkpoints.quantized.packed import Packed, Tensors, Unpacked, rest, spans, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2")
EXPONENTS = ("float8_e8m0fnu", "uint8")
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of a 4-bit float (e2m1) by its code."""
_ACTIVATIONS = ("activation_scale", "input_scale", "input_scale_ub", "qscale_act", "k_scale", "v_scale", "output_scale")
"""Endings of scales of activations and caches, which the weights do not have."""


@dataclass(frozen=True, kw_only=True)
class ScaledBlocks(QuantizedTensor):
    """Matrices [..., rows, columns] of small floats, with a scale for each `block` (rows, columns) of them; the last
    blocks may be cut off."""

    weight: TensorInfo
    scale: TensorInfo
    block: tuple[int, int]

    def dequantized(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        import torch

        rows, columns = self.shape[-2:]
        down, across = -(-rows // self.block[0]), -(-columns // self.block[1])
        weight = read(self.weight)
        weight = weight.reshape(-1, rows, weight.shape[-1])
        scales = _float(read(self.scale)).expand(self._count(down, across)).reshape(-1, down, across)
        result = torch.empty(len(weight), rows, columns, dtype=torch_dtype(self.dtype))
        for matrix, codes, grid in zip(result, weight, scales, strict=True):
            for span in spans(rows, columns):
                factors = grid[torch.arange(span.start, span.stop) // self.block[0]]
                if across > 1:
                    factors = factors.repeat_interleave(self.block[1], dim=1)[:, :columns]
                matrix[span] = values(codes[span]) * factors
        return result.reshape(self.shape)

    def _count(self, down: int, across: int) -> tuple[int, ...]:
        """The shape of the scales, for one that stands for all matrices too."""
        return self.scale.shape if self.scale.elements > 1 else (*self.shape[:-2], down, across)


def values(codes: Tensor) -> Tensor:
    """Small floats in float32; bytes hold two e2m1 each, the lower bits first."""
    import torch

    if codes.dtype not in (torch.int8, torch.uint8):
        return codes.to(torch.float32)
    table, raw = torch.tensor(FP4_VALUES), codes.view(torch.uint8)
    pairs = torch.stack((raw & 15, raw >> 4), dim=-1).reshape(*raw.shape[:-1], -1)
    return table[pairs.to(torch.int32)]


def _float(scale: Tensor) -> Tensor:
    import torch

    return (scale.to(torch.float32) - 127).exp2() if scale.dtype == torch.uint8 else scale.to(torch.float32)


def read(packed: Packed) -> Unpacked:
    """The tensors of a checkpoint in this format. Raises InputError."""
    tensors: Tensors = {}
    used, blocks = set[str](), dict[tuple[int, int], None]()
    for name, info in packed.stored.items():
        scale = next((s for s in _scale_names(name) if s in packed.stored), None)
        if scale is None or info.dtype not in (*EIGHT_BITS, "int8", "uint8"):
            continue
        tensor = _scaled(packed, name, packed.part(scale, (*FLOATS, *EXPONENTS), range(len(info.shape) + 1)))
        tensors[name] = tensor
        used |= {name, scale}
        blocks[tensor.block] = None
    shown = [f"{a} x {b}" for a, b in blocks if a < 2048]
    words = f"8-bit floats in blocks of {', '.join(shown[:2])}" if shown else "8-bit floats"
    return Unpacked({**rest(packed, used, _ACTIVATIONS), **tensors}, words)


def _scale_names(name: str) -> list[str]:
    module = name.removesuffix(".weight")
    others = [f"{module}.scale", f"{module}.qscale_weight"] if module != name else []
    return [f"{name}_scale_inv", f"{name}_scale", *others]


def _scaled(packed: Packed, name: str, scale: TensorInfo) -> ScaledBlocks:
    """A quantized tensor, once its scales fit."""
    info, grid = packed.stored[name], scale.shape
    if len(info.shape) < 2 or 0 in info.shape:
        raise packed.error(f"{name} is {list(info.shape)}, and no matrix")
    halves = 1 if info.dtype in EIGHT_BITS else 2  # e2m1: two in a byte
    shape = (*info.shape[:-1], info.shape[-1] * halves)
    leading, (rows, columns) = shape[:-2], shape[-2:]
    # One scale for all or for each matrix, for each row, or a grid of them
    if scale.elements == 1 or (leading and grid == leading):
        down, across = 1, 1
    elif not leading and grid == (rows,):
        down, across = rows, 1
    else:
        if len(grid) != len(shape) or grid[:-2] != leading or 0 in grid:
            raise packed.error(f"{name} is {list(shape)}, and its scales are {list(grid)}")
        down, across = grid[-2:]
    block = (_block(packed, name, rows, down, 0), _block(packed, name, columns, across, 1))
    return ScaledBlocks(
        shape=shape, dtype=packed.dtype, file=info.file, start=info.start, weight=info, scale=scale, block=block
    )


def _block(packed: Packed, name: str, size: int, count: int, axis: int) -> int:
    """The length of a block along an axis. The configured one counts where it makes as many blocks, as the last of
    them may be shorter; else blocks are equal."""
    listed = packed.settings.get("weight_block_size")
    length = listed[axis] if isinstance(listed, list) and len(listed) == 2 else None
    if isinstance(length, int) and length > 0 and count > 1 and -(-size // length) == count:
        return length
    if count == 0 or size % count:
        raise packed.error(f"{name} has {count} scales for {size} {'columns' if axis else 'rows'}")
    return size // count
