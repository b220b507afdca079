"""bitsandbytes: 4-bit codes (NF4, FP4) in blocks, and 8-bit integers by rows (quant_method bitsandbytes).

4 bit (Dettmers et al. 2023, "QLoRA", sections 3 and 3.1): W = map[code] * absmax of the block in float32, rounded to
the dtype that the state names. With double quantization absmax = map8[code8] * absmax8 of its block + offset.
8 bit (Dettmers et al. 2022, "LLM.int8()"): W = q * SCB of the row / 127.
Both as bitsandbytes 0.50 computes them (`dequantize_4bit`, `int8_vectorwise_dequant`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.headers import CHUNK, FLOATS, QuantizedTensor, TensorInfo
from evomerge.checkpoints.quantized.packed import Packed, Tensors, Unpacked, rest, spans, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

_STATE = re.compile(r"(?P<name>.+)\.quant_state\.bitsandbytes__(?P<kind>nf4|fp4)")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_EIGHT_BITS = ("SCB", "weight_format")
_PER_127 = 7.874015718698502e-3
_STORAGE = (*FLOATS, "uint8", "int8")
"""The dtypes that hold codes: bytes, or floats of which the bytes count (bnb_4bit_quant_storage)."""


@dataclass(frozen=True)
class _Absmax:
    """The largest magnitudes of blocks of `size` values: floats, or codes with a map and magnitudes of their own."""

    size: int
    offset: float = 0.0
    nested_size: int = 0


@dataclass(frozen=True, kw_only=True)
class FourBits(QuantizedTensor):
    """A matrix of codes, two in a byte, the upper bits first. `state`: the dtype that it was quantized from.
    `stored_as`: its shape before it is transposed."""

    codes: TensorInfo
    map: TensorInfo
    absmax: TensorInfo
    nested_map: TensorInfo | None
    nested_absmax: TensorInfo | None
    blocks: _Absmax
    state: str
    stored_as: tuple[int, ...]

    def dequantized(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        import torch

        count, size = self.elements, self.blocks.size
        raw, table = read(self.codes).reshape(-1).view(torch.uint8), read(self.map).to(torch.float32)
        largest = self._largest(read)
        result = torch.empty(count, dtype=torch_dtype(self.dtype))
        step = CHUNK // size * size  # whole blocks, and an even number of values
        for start in range(0, count, step):
            stop = min(count, start + step)
            pairs = raw[start // 2 : -(-stop // 2)]
            chunk = table[torch.stack((pairs >> 4, pairs & 15), dim=-1).reshape(-1).to(torch.int32)][: stop - start]
            factors = largest[start // size : -(-stop // size)].repeat_interleave(size)[: stop - start]
            result[start:stop] = (chunk * factors).to(torch_dtype(self.state))
        result = result.reshape(self.stored_as)
        return result if self.stored_as == self.shape else result.T.contiguous()

    def _largest(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        """The blocks' largest magnitudes in float32."""
        import torch

        absmax = read(self.absmax).reshape(-1)
        if self.nested_map is None or self.nested_absmax is None:
            return absmax.to(torch.float32)
        factors = read(self.nested_absmax).to(torch.float32).reshape(-1).repeat_interleave(self.blocks.nested_size)
        values = read(self.nested_map).to(torch.float32)[absmax.to(torch.int32)]
        return values * factors[: len(values)] + torch.tensor(self.blocks.offset)


@dataclass(frozen=True, kw_only=True)
class EightBits(QuantizedTensor):
    """A matrix of integers by rows, with the largest magnitude of each row; `turned`: it is stored transposed."""

    codes: TensorInfo
    largest: TensorInfo
    turned: bool

    def dequantized(self, read: Callable[[TensorInfo], Tensor]) -> Tensor:
        import torch

        codes, largest = read(self.codes), read(self.largest).reshape(-1, 1)
        result = torch.empty(codes.shape, dtype=torch_dtype(self.dtype))
        for span in spans(*codes.shape):
            result[span] = codes[span] * largest[span] * _PER_127
        return result.T.contiguous() if self.turned else result


def read(packed: Packed) -> Unpacked:
    """The tensors of a checkpoint in this format. Raises InputError."""
    tensors: Tensors = {}
    used, words = set[str](), dict[str, None]()
    for name, info in packed.stored.items():
        if match := _STATE.fullmatch(name):
            target = match["name"]
            tensors[target] = _four_bits(packed, target, info)
            used |= {target, name, *(f"{target}.{part}" for part in _PARTS)}
            words[f"bitsandbytes, 4 bits ({match['kind'].upper()})"] = None
        elif name.endswith(".SCB"):
            module = name.removesuffix(".SCB")
            tensors[f"{module}.weight"] = _eight_bits(packed, module, info)
            used |= {f"{module}.weight", *(f"{module}.{part}" for part in _EIGHT_BITS)}
            words["bitsandbytes, 8 bits"] = None
    return Unpacked({**rest(packed, used), **tensors}, ", ".join(words))


def _four_bits(packed: Packed, name: str, state: TensorInfo) -> FourBits:
    settings = _state(packed, name, state)
    codes = packed.part(name, _STORAGE, range(1, 4))
    shape, size, dtype = tuple(settings["shape"]), settings["blocksize"], settings["dtype"]
    count = math.prod(shape)
    nested = "nested_offset" in settings
    absmax = packed.part(f"{name}.absmax", ("uint8",) if nested else FLOATS, (1, 2))
    nested_absmax, nested_map, blocks = None, None, _Absmax(size)
    if nested:
        nested_absmax = packed.scale(f"{name}.nested_absmax", (1,))
        nested_map = packed.scale(f"{name}.nested_quant_map", (1,))
        blocks = _Absmax(size, float(settings["nested_offset"]), settings["nested_blocksize"])
        if nested_map.elements != 256 or nested_absmax.elements * blocks.nested_size < absmax.elements:
            raise packed.error(f"the magnitudes of {name} do not fit its blocks")
    table = packed.scale(f"{name}.quant_map", (1,))
    if table.elements != 16 or absmax.elements != -(-count // size) or codes.bytes < -(-count // 2):
        raise packed.error(f"{name} is stored in {codes.bytes} bytes, which is not {list(shape)} in blocks of {size}")
    turned = len(shape) == 2 and packed.is_transposed(name)
    return FourBits(
        shape=shape[::-1] if turned else shape,
        dtype=packed.dtype,
        file=codes.file,
        start=codes.start,
        codes=codes,
        map=table,
        absmax=absmax,
        nested_map=nested_map,
        nested_absmax=nested_absmax,
        blocks=blocks,
        state=dtype,
        stored_as=shape,
    )


def _state(packed: Packed, name: str, info: TensorInfo) -> dict[str, Any]:
    """The JSON that a tensor of bytes holds: shape, blocks and dtype. Raises InputError."""

    try:
        state = json.loads(packed.small(info))
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise packed.error(f"the quant_state of {name} is no JSON object")
    sizes = [state.get("blocksize"), *([state.get("nested_blocksize")] if "nested_offset" in state else [])]
    # Chunks hold whole blocks of an even number of values
    if not (_are_sizes(state.get("shape")) and _are_sizes(sizes)) or any(n % 2 or n > CHUNK for n in sizes if n):
        raise packed.error(f"the quant_state of {name} has no shape and blocks that can be")
    if state.get("dtype") not in ("float32", "float16", "bfloat16"):
        raise packed.error(f"the quant_state of {name} has no dtype that can be")
    if type(state.get("nested_offset", 0)) not in (int, float):
        raise packed.error(f"the quant_state of {name} has no number as nested_offset")
    return state


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(n) is int and 0 < n < 2**31 for n in values)


def _eight_bits(packed: Packed, module: str, largest: TensorInfo) -> EightBits:
    name = f"{module}.weight"
    codes = packed.part(name, ("int8",), (2,))
    packed.scale(f"{module}.SCB", (1, 2))
    if largest.elements != codes.shape[0]:
        raise packed.error(f"{name} has {codes.shape[0]} rows and {largest.elements} scales")
    layout = packed.stored.get(f"{module}.weight_format")
    if layout is not None and any(packed.small(layout)):
        raise packed.error(f"{name} is not stored by rows", "save it again with a current version of bitsandbytes")
    turned = packed.is_transposed(name)
    return EightBits(
        shape=codes.shape[::-1] if turned else codes.shape,
        dtype=packed.dtype,
        file=codes.file,
        start=codes.start,
        codes=codes,
        largest=largest,
        turned=turned,
    )
