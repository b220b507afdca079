"""AWQ, layout "gemm": 4-bit codes with a scale and a zero point for each group of inputs (quant_method awq).

W[o, i] = (q[i, o] - z[g(i), o]) * s[g(i), o] in the scales' dtype (AutoAWQ and gptqmodel, `dequantize_gemm`). The eight
codes of a word are those of the outputs 0, 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.checkpoints.headers import QuantizedTensor, TensorInfo
from evomerge.checkpoints.quantized.packed import Packed, Tensors, Unpacked, codes, rest, spans, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in a word of each of its eight outputs."""
_BITS = 4


@dataclass(frozen=True, kw_only=True)
class AwqMatrix(QuantizedTensor):
    """A matrix [outputs, inputs]: codes [inputs, outputs / 8], zero points [groups, outputs / 8], scales [groups,
    outputs]."""

    codes: TensorInfo
    zeros: TensorInfo
    scales: TensorInfo

    def dequantized(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        import torch

        outputs, inputs = self.shape
        words, zeros, scales = read(self.codes), _ordered(read(self.zeros)), read(self.scales)
        size = inputs // len(scales)
        result = torch.empty(self.shape, dtype=torch_dtype(self.dtype))
        for span in spans(inputs, outputs):
            group = torch.arange(span.start, span.stop) // size
            steps = _ordered(words[span]) - zeros[group]
            result[:, span] = (steps.to(scales.dtype) * scales[group]).T.to(result.dtype)
        return result


def _ordered(words: Tensor) -> Tensor:
    """The codes of words [rows, words] in the order of the outputs."""
    rows = len(words)
    return codes(words, _BITS).reshape(rows, -1, len(_PLACES))[:, :, list(_PLACES)].reshape(rows, -1)


def read(packed: Packed) -> Unpacked:
    """The tensors of a checkpoint in this format. Raises InputError."""
    version = str(packed.settings.get("version") or packed.settings.get("format") or "gemm").lower()
    if version != "gemm":
        raise packed.error(f"its weights are laid out for one kernel ({version})", "give the version gemm")
    tensors: Tensors = {}
    used = set[str]()
    for name in packed.stored:
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            tensors[f"{module}.weight"] = _matrix(packed, module)
            used |= {f"{module}.{part}" for part in ("qweight", "qzeros", "scales")}
    # Scales of activations (Bloom, Falcon, MPT): the layers before them have not taken them in
    scaled = next((n for n in rest(packed, used) if n.endswith("act.scales")), None)
    if scaled is not None:
        raise packed.error(f"it scales activations ({scaled})", "give the unquantized model")
    return Unpacked({**rest(packed, used), **tensors}, f"AWQ of {_BITS} bits")


def _matrix(packed: Packed, module: str) -> AwqMatrix:
    words = packed.part(f"{module}.qweight", ("int32",), (2,))
    zeros = packed.part(f"{module}.qzeros", ("int32",), (2,))
    scales = packed.scale(f"{module}.scales")
    (inputs, wide), count = words.shape, scales.shape[0]
    outputs = wide * len(_PLACES)
    if scales.shape[1] != outputs or zeros.shape != (count, wide) or not count or inputs % count:
        shapes = [list(info.shape) for info in (words, zeros, scales)]
        raise packed.error(f"{module} has codes, zero points and scales of the shapes {shapes}")
    return AwqMatrix(
        shape=(outputs, inputs),
        dtype=packed.dtype,
        file=words.file,
        start=words.start,
        codes=words,
        zeros=zeros,
        scales=scales,
    )
