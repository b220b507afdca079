"""GPTQ: integer codes of 2, 3, 4 or 8 bits, with a scale and a zero point for each group of inputs (quant_method gptq).

W[o, i] = (q[i, o] - z[g(i), o]) * s[g(i), o] in the scales' dtype (gptqmodel 7, `TorchLinear.dequantize_weight`, which
transformers runs). The first version of the format stores zero points minus one: one is added to every field of a word
at once, as gptqmodel does, so that what its own conversion takes away comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.checkpoints.headers import QuantizedTensor, TensorInfo
from evomerge.checkpoints.quantized.packed import Packed, Tensors, Unpacked, codes, rest, spans, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

_BITS = (2, 3, 4, 8)
_VERSIONS = {"gptq": True, "gptq_v2": False}
"""The versions of the format: whether zero points are stored minus one."""


@dataclass(frozen=True, kw_only=True)
class GptqMatrix(QuantizedTensor):
    """A matrix [outputs, inputs]: codes [inputs * bits / 32, outputs], zero points [groups, outputs * bits / 32],
    scales [groups, outputs], and perhaps the group of each input. `less_one`: zero points are stored minus one."""

    codes: TensorInfo
    zeros: TensorInfo
    scales: TensorInfo
    groups: TensorInfo | None
    bits: int
    less_one: bool

    def dequantized(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        import torch

        outputs, inputs = self.shape
        words, scales = read(self.codes), read(self.scales)
        if self.groups is None:
            group = torch.arange(inputs) // (inputs // len(scales))
        else:
            group = read(self.groups).to(torch.int64)
        zeros = self._zeros(read(self.zeros))[:, :outputs]
        result = torch.empty(self.shape, dtype=torch_dtype(self.dtype))
        for span in spans(outputs, inputs):
            steps = codes(words[:, span].T.contiguous(), self.bits)[:, :inputs] - zeros[:, span].T[:, group]
            result[span] = steps.to(scales.dtype) * scales[:, span].T[:, group]
        return result

    def _zeros(self, words: Tensor) -> Tensor:
        """The zero points [groups, outputs]."""
        if not self.less_one:
            return codes(words, self.bits)
        if self.bits == 3:  # fields lie across words
            return (codes(words, 3) + 1) & 7
        ones = sum(1 << shift for shift in range(0, 32, self.bits))
        return codes(words + ones, self.bits)


def read(packed: Packed) -> Unpacked:
    """The tensors of a checkpoint in this format. Raises InputError."""
    version = str(packed.settings.get("checkpoint_format") or "gptq")
    if version not in _VERSIONS:
        raise packed.error(f"its weights are laid out for one kernel ({version})", "give the checkpoint in format gptq")
    tensors: Tensors = {}
    used, widths = set[str](), set[int]()
    for name in packed.stored:
        if name.endswith(".qweight"):
            module = name.removesuffix(".qweight")
            matrix = _matrix(packed, module, _VERSIONS[version])
            tensors[f"{module}.weight"] = matrix
            widths.add(matrix.bits)
            used |= {f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    shown = ", ".join(map(str, sorted(widths)))
    return Unpacked({**rest(packed, used), **tensors}, f"GPTQ of {shown} bits")


def _matrix(packed: Packed, module: str, less_one: bool) -> GptqMatrix:
    """A module's matrix. Its bits and its groups follow from the shapes, as a checkpoint may mix them."""
    words = packed.part(f"{module}.qweight", ("int32",), (2,))
    zeros = packed.part(f"{module}.qzeros", ("int32",), (2,))
    scales = packed.scale(f"{module}.scales")
    outputs, count = words.shape[1], scales.shape[0]
    groups = packed.stored.get(f"{module}.g_idx")
    if groups is not None:
        packed.part(f"{module}.g_idx", ("int32", "int64"), (1,))
    # Zero points of few outputs fill one word with any number of bits: then the settings, or the inputs, tell it
    told = packed.settings.get("bits")
    able = [b for b in sorted(_BITS, key=lambda b: b != told) if -(-outputs * b // 32) == zeros.shape[1]]
    if groups is not None:
        able = [b for b in able if -(-groups.elements * b // 32) == words.shape[0]] or able
    bits = able[0] if able else 0
    inputs = groups.elements if groups is not None else words.shape[0] * 32 // bits if bits else 0
    fits = scales.shape[1] == outputs and zeros.shape[0] == count and (groups is not None or not inputs % max(1, count))
    if not bits or not inputs or not count or not fits or -(-inputs * bits // 32) != words.shape[0]:
        shapes = [list(info.shape) for info in (words, zeros, scales)]
        raise packed.error(f"{module} has codes, zero points and scales of the shapes {shapes}")
    return GptqMatrix(
        shape=(outputs, inputs),
        dtype=packed.dtype,
        file=words.file,
        start=words.start,
        codes=words,
        zeros=zeros,
        scales=scales,
        groups=groups,
        bits=bits,
        less_one=less_one,
    )
