"""A Llama of some thousand parameters whose matrices are stored quantized, packed by hand in each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tiny_models
import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS, HIDDEN, INNER, VOCAB = 2, 64, 128, 40
Parts = dict[str, Tensor]


def config(**changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCAB}
    return tiny_models.config(**sizes, head_dim=32, **{"dtype": "bfloat16", **changes})


def matrices() -> dict[str, tuple[int, int]]:
    """The shapes of the matrices that are quantized."""
    shapes = {
        "self_attn.q_proj": (64, HIDDEN),
        "self_attn.k_proj": (32, HIDDEN),
        "self_attn.v_proj": (32, HIDDEN),
        "self_attn.o_proj": (HIDDEN, 64),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    return {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}


def tensors(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The unquantized model."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    shapes |= {f"{name}.weight": shape for name, shape in matrices().items()}
    norms = [f"model.layers.{i}.{kind}_layernorm" for i in range(LAYERS) for kind in ("input", "post_attention")]
    shapes |= {f"{name}.weight": (HIDDEN,) for name in (*norms, "model.norm")}
    shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    return {
        name: (torch.randn(shape, generator=generator) * 0.05 + (1.0 if "norm" in name else 0.0)).to(dtype)
        for name, shape in shapes.items()
    }


def write(
    folder: Path,
    quantize: Callable[[Tensor], Mapping[str, Tensor]],
    settings: Mapping[str, Any],
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """A whole checkpoint. `quantize`: the stored tensors of a matrix, by what follows the module's name."""
    stored: Parts = {}
    for name, tensor in tensors(seed, dtype).items():
        module = name.removesuffix(".weight")
        parts = quantize(tensor.float()) if module in matrices() else {"weight": tensor}
        stored |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
    folder.mkdir(parents=True)
    kind = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config(dtype=kind, quantization_config=dict(settings))))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    tiny_models.write_tokenizer(folder, ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(VOCAB - 3))])
    return folder


def rewrite(folder: Path, quantize: Callable[[Tensor], Mapping[str, Tensor]], settings: Mapping[str, Any]) -> None:
    """Stores the matrices in the layers of a checkpoint quantized, and everything else in bfloat16."""
    stored: Parts = {}
    for name, tensor in tiny_models.read(folder).items():
        matrix = name.startswith("model.layers.") and tensor.ndim == 2
        parts = quantize(tensor.float()) if matrix else {"weight": tensor.bfloat16()}
        stored |= {f"{name.removesuffix('.weight')}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((folder / "config.json").read_text())
    told |= {"dtype": "bfloat16", "quantization_config": dict(settings)}
    (folder / "config.json").write_text(json.dumps(told))


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [32, 32]}


def fp8_blocks(weight: Tensor, rows: int = 32, columns: int = 32) -> Parts:
    """DeepSeek's format: blocks of 8-bit floats and their scales."""
    height, width = weight.shape
    blocks = weight.reshape(height // rows, rows, width // columns, columns)
    scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
    codes = (blocks / scale).to(torch.float8_e4m3fn).reshape(height, width)
    return {"weight": codes, "weight_scale_inv": scale.squeeze(3).squeeze(1)}


def grouped(weight: Tensor, bits: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [inputs, outputs], zero points and scales [groups, outputs] of groups of inputs. No zero point is 0."""
    groups = weight.T.reshape(-1, size, len(weight))
    low, high = groups.amin(dim=1), groups.amax(dim=1)
    scales = ((high - low) / (2**bits - 1)).to(torch.float16)
    zeros = (-low / scales.float()).round().clamp(1, 2**bits - 1)
    codes = (groups / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 2**bits - 1)
    return codes.reshape(weight.T.shape).int(), zeros.int(), scales


def words(codes: Tensor, bits: int) -> Tensor:
    """Codes [rows, columns] packed along the columns into 32-bit words, the lowest bits first."""
    rows, columns = codes.shape
    filled = [[0] * -(-columns * bits // 32) for _ in range(rows)]
    for r, row in enumerate(codes.tolist()):
        number = sum(code << (i * bits) for i, code in enumerate(row))
        filled[r] = [(number >> (32 * w)) & 0xFFFFFFFF for w in range(len(filled[r]))]
    return torch.tensor(filled, dtype=torch.int64).to(torch.int32)


def gptq(weight: Tensor, bits: int = 4, size: int = 32, version: int = 1, order: Tensor | None = None) -> Parts:
    """GPTQ: codes packed along the inputs, zero points along the outputs (minus one in version 1). `order`: the inputs
    in the order in which they fill the groups (desc_act)."""
    order = torch.arange(weight.shape[1]) if order is None else order
    codes, zeros, scales = grouped(weight[:, order], bits, size)
    back = torch.argsort(order)
    return {
        "qweight": words(codes[back].T, bits).T,
        "qzeros": words(zeros - int(version == 1), bits),
        "scales": scales,
        "g_idx": (back // size).int(),
    }


def awq(weight: Tensor, size: int = 32) -> Parts:
    """AWQ, version gemm: codes and zero points packed along the outputs, in an order of their own."""
    codes, zeros, scales = grouped(weight, 4, size)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

    def packed(numbers: Tensor) -> Tensor:
        return words(numbers.reshape(len(numbers), -1, 8)[:, :, order].reshape(numbers.shape), 4)

    return {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales}
