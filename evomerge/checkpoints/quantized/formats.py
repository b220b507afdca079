"""A table of formats, and the one way in: what a quantized checkpoint stores becomes the tensors that it stands for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.checkpoints.config import read_settings
from evomerge.checkpoints.headers import FLOATS, QuantizedTensor, TensorInfo
from evomerge.checkpoints.quantized import awq, bitsandbytes, compressed_tensors, fp8, gptq, mxfp4
from evomerge.checkpoints.quantized.packed import Packed, Unpacked
from evomerge.checkpoints.structure import text_config
from evomerge.errors import InputError, Where
from evomerge.escape import shortened
from evomerge.safety.read import is_there

FORMATS: dict[str, Callable[[Packed], Unpacked]] = {
    "fp8": fp8.read,
    "fbgemm_fp8": fp8.read,
    "compressed-tensors": compressed_tensors.read,
    "gptq": gptq.read,
    "awq": awq.read,
    "bitsandbytes": bitsandbytes.read,
    "mxfp4": mxfp4.read,
}
"""The reader of each quant_method."""
_KEYS = ("quantization_config", "compression_config")
_BESIDE = "quantize_config.json"
"""Where early GPTQ checkpoints have their settings."""
_MEND = "dequantize it to a float dtype first, or merge the unquantized model"


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint's weights are stored: `words`, the number of `tensors` that are quantized, the `dtype` that they
    are read as, and the `files` that say so besides config.json."""

    words: str
    tensors: int
    dtype: str
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.words}, dequantized to {self.dtype}"


def unpacked(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, TensorInfo], where: Where | None
) -> tuple[dict[str, Any], dict[str, TensorInfo], Quantization | None]:
    """A checkpoint's configuration without its quantization, the tensors that it stands for, and how it is quantized.
    `stored`: what its files hold.

    Raises:
        InputError: it is quantized in a way that cannot be read, or is damaged.
    """
    settings, files = _settings(folder, config, stored, where)
    plain = _without(config)
    if settings is None:
        _check_floats(folder, stored, where)
        return plain, dict(stored), None
    method = _method(settings)
    read = FORMATS.get(method)
    if read is None:
        problem = f"{folder} is quantized with {shortened(method, 40) or 'an unnamed method'}, which cannot be read"
        raise InputError(problem, f"readable are {', '.join(FORMATS)}; {_MEND}", where)
    packed = Packed(folder, settings, stored, _dtype(plain, stored), _model_type(plain), where)
    result = read(packed)
    _check_floats(folder, result.tensors, where)
    count = sum(isinstance(info, QuantizedTensor) for info in result.tensors.values())
    quantization = Quantization(result.words, count, packed.dtype, files) if count else None
    return plain, result.tensors, quantization


def _settings(
    folder: Path, config: Mapping[str, Any], stored: Mapping[str, TensorInfo], where: Where | None
) -> tuple[dict[str, Any] | None, tuple[Path, ...]]:
    """The settings of the quantization, and the file they are in, if that is not config.json."""
    for part in (config, text_config(config)):
        for key in _KEYS:
            if isinstance(part.get(key), dict) and part[key]:
                return dict(part[key]), ()
    beside = folder / _BESIDE
    if any(name.endswith(".qweight") for name in stored) and is_there(beside, where):
        return {"quant_method": "gptq", **read_settings(beside, where)}, (beside,)
    return None, ()


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        return "bitsandbytes"  # as transformers reads early ones
    return str(method or "").replace("_", "-") if method == "compressed_tensors" else str(method or "")


def _without(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that says nothing of a quantization."""
    plain = {key: value for key, value in config.items() if key not in _KEYS}
    inner = plain.get("text_config")
    if isinstance(inner, dict):
        plain["text_config"] = {key: value for key, value in inner.items() if key not in _KEYS}
    return plain


def _dtype(config: Mapping[str, Any], stored: Mapping[str, TensorInfo]) -> str:
    """The configuration's dtype, else the commonest of the stored floats, else bfloat16."""
    for part in (config, text_config(config)):
        for key in ("dtype", "torch_dtype"):
            name = str(part.get(key)).removeprefix("torch.")
            if name in FLOATS:
                return name
    counts = Counter(info.dtype for info in stored.values() if info.dtype in FLOATS and len(info.shape) > 1)
    return counts.most_common(1)[0][0] if counts else "bfloat16"


def _model_type(config: Mapping[str, Any]) -> str | None:
    kind = text_config(config).get("model_type")
    return kind if isinstance(kind, str) else None


def _check_floats(folder: Path, tensors: Mapping[str, TensorInfo], where: Where | None) -> None:
    """InputError for a weight that is not of floats once the format was read."""
    for name, info in tensors.items():
        if (info.dtype not in FLOATS and name.endswith("weight")) or info.dtype.startswith("float8"):
            raise InputError(f"{folder} is quantized ({name} is {info.dtype})", _MEND, where)
