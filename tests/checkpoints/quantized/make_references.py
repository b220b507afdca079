"""Writes references.safetensors: matrices in GPTQ and AWQ, and what gptqmodel, which transformers runs, makes of them.

gptqmodel is built when it is installed and needs newer libraries than these tests. Its Python files are enough:

    pip download --no-deps --no-binary :all: gptqmodel==7.7.0 && tar xzf gptqmodel-7.7.0.tar.gz
    pip install --no-deps device-smi logbar tokenicer defuser pypcre torchao dill threadpoolctl
    PYTHONPATH=gptqmodel-7.7.0 python tests/checkpoints/quantized/make_references.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
GPTQ = {
    "gptq-4": (4, 1),
    "gptq-4-v2": (4, 2),
    "gptq-8": (8, 1),
    "gptq-2": (2, 1),
    "gptq-3": (3, 1),
    "gptq-3-v2": (3, 2),
}


def main() -> None:
    sys.path.insert(0, str(FOLDER.parent))
    import quantized_models as models
    from gptqmodel import __version__
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 96, generator=generator)
    order = torch.randperm(96, generator=generator)
    cases = {name: (models.gptq(weight, bits, version=v), bits, v) for name, (bits, v) in GPTQ.items()}
    cases["gptq-4-order"] = models.gptq(weight, order=order), 4, 1
    # Zero points of which some are 15: one more runs over into the next
    wild = torch.randint(-(2**31), 2**31, cases["gptq-4"][0]["qzeros"].shape, generator=generator).int()
    cases["gptq-4-wild"] = {**cases["gptq-4"][0], "qzeros": wild}, 4, 1
    stored = {}
    for name, (parts, bits, version) in cases.items():
        linear = TorchLinear(
            bits=bits, group_size=32, sym=False, desc_act=True, in_features=96, out_features=64, bias=False
        )
        linear.load_state_dict(parts, strict=False)
        if version == 1:
            convert_gptq_v1_to_v2_format_module(linear, bits, torch.int32)
        linear.post_init()
        expected = linear.eval().dequantize_weight().T
        stored |= {f"{name}.{part}": tensor for part, tensor in {**parts, "expected": expected}.items()}
    parts = models.awq(weight)
    expected = dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"], 4, 32).T
    stored |= {f"awq.{part}": tensor for part, tensor in {**parts, "expected": expected}.items()}
    made = {name: tensor.clone().contiguous() for name, tensor in stored.items()}
    save_file(made, FOLDER / "references.safetensors", metadata={"gptqmodel": __version__})


if __name__ == "__main__":
    main()
