"""MXFP4, as gpt-oss stores its experts: 4-bit floats (e2m1) with a power of two for each 32 (quant_method mxfp4).

W = value * 2^(scale - 127) (OCP Microscaling Formats 1.0, section 5.1), laid out as transformers has it in memory and
as unquantized checkpoints store it (transformers, `convert_moe_packed_tensors`): [experts, inputs, outputs].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.checkpoints.headers import QuantizedTensor, TensorInfo
from evomerge.checkpoints.quantized.fp8 import values
from evomerge.checkpoints.quantized.packed import Packed, Tensors, Unpacked, rest, spans, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mxfp4Experts(QuantizedTensor):
    """Matrices [experts, inputs, outputs]: codes [experts, outputs, groups, bytes], scales [experts, outputs,
    groups]."""

    codes: TensorInfo
    scales: TensorInfo

    def dequantized(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        import torch

        codes, scales = read(self.codes), read(self.scales)
        result = torch.empty(self.shape, dtype=torch_dtype(self.dtype))
        _, inputs, outputs = self.shape
        for matrix, blocks, exponents in zip(result, codes, scales, strict=True):
            for span in spans(outputs, inputs):
                factors = torch.ldexp(torch.ones(()), exponents[span].to(torch.int32) - 127)
                matrix[:, span] = (values(blocks[span]) * factors[..., None]).reshape(-1, inputs).T.to(result.dtype)
        return result


def read(packed: Packed) -> Unpacked:
    """The tensors of a checkpoint in this format. Raises InputError."""
    tensors: Tensors = {}
    used = set[str]()
    for name in packed.stored:
        if name.endswith("_blocks"):
            target = name.removesuffix("_blocks")
            codes = packed.part(name, ("uint8",), (4,))
            scales = packed.part(f"{target}_scales", ("uint8",), (3,))
            if codes.shape[:-1] != scales.shape:
                raise packed.error(f"{target} has codes {list(codes.shape)} and scales {list(scales.shape)}")
            experts, outputs, groups, size = codes.shape
            tensors[target] = Mxfp4Experts(
                shape=(experts, groups * size * 2, outputs),
                dtype=packed.dtype,
                file=codes.file,
                start=codes.start,
                codes=codes,
                scales=scales,
            )
            used |= {name, f"{target}_scales"}
    return Unpacked({**rest(packed, used), **tensors}, "4-bit floats (MXFP4)")
