"""Compiled kernels: the bits of plain torch, in a process of its own until they are there."""

from __future__ import annotations

import functools
import os
import shutil

import pytest
import torch

from evomerge.merging.kernels.compiled import Compiled, Signature, compile_
from evomerge.merging.kernels.digest import digest
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs, mask_ints
from evomerge.merging.kernels.masks import Draw
from evomerge.merging.kernels.runner import Runner
from evomerge.registry import METHODS, load
from evomerge.testing.methods import arguments

compiled = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="kernels are compiled by a C++ compiler"
)
pytestmark = compiled
SIZES = (4096, 5003, 70_001)  # with and without a rest that does not fill the processor's vectors
DRAW = Draw(5, "model.layers.0.mlp.up_proj.weight")
KINDS = {
    "largest": ("ties", torch.bfloat16, {"density": 0.4}),
    "between": ("breadcrumbs", torch.float16, {"density": 0.5, "gamma": 0.1}),
    "drawn": ("dare_linear", torch.float32, {"density": 0.6, "normalize": True}),
    "masked": ("della", torch.bfloat16, {"density": 0.5}),
}


class Ready:
    """Every kernel is compiled before its first use."""

    def __init__(self):
        self.find = functools.lru_cache(None)(compile_)

    def spent(self, signature, seconds):
        pass


READY = Ready()


def tensors(count, dtype, number=3):
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(count, generator=generator)
    made = [(base + 0.05 * torch.randn(count, generator=generator)).to(dtype) for _ in range(number)]
    return made, base.to(dtype)


def bits(tensor):
    """Signed zeros are told apart."""
    return tensor.view(torch.int16 if tensor.dtype.itemsize == 2 else torch.int32)


def both(blend, count, work):
    """What the blend writes compiled, and in plain torch."""
    found = []
    for runner in (Runner(READY), Runner()):
        out = torch.full((count,), 7.0, dtype=work)
        runner.write(blend, out, work)
        found.append(out)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_merges_have_equal_bits(kind):
    name, dtype, values = KINDS[kind]
    for count in SIZES:
        merged, base = tensors(count, dtype)
        inputs = Inputs(merged, base, draw=DRAW)
        blend = load(METHODS[name].function)(inputs, **arguments(name, 3, weight=[0.7, 0.5, -0.3], **values))
        compiled, plain = both(blend, count, dtype)
        assert torch.equal(bits(compiled), bits(plain))
        assert not torch.equal(plain, base)


def test_random_masks_are_equal():
    """The norms of what is kept tell the masks apart; both ways they are whole numbers."""
    for count in SIZES:
        merged, base = tensors(count, torch.bfloat16)
        scales = [2.0**20] * 3
        blend = Blend(
            Kernel("drawn_norms", (("work", torch.bfloat16),)), base, merged, [scales], mask_ints(DRAW, [0.2, 0.5, 0.9])
        )
        assert Runner(READY).reduce(blend, torch.bfloat16) == Runner().reduce(blend, torch.bfloat16)


def test_fingerprints_are_equal():
    model = {f"t{count}": tensors(count, torch.bfloat16)[1] for count in SIZES}
    assert digest(model.items(), Runner(READY)) == digest(model.items())


@pytest.mark.parametrize(("dtype", "dropped"), [(torch.bfloat16, 16), (torch.float16, 13)])
def test_a_rounding_inside_a_formula_is_not_optimized_away(dtype, dropped):
    """Every value of the dtype, those beside it, and those beside and at the middle between it and the next."""
    half = 1 << (dropped - 1)
    stored = torch.arange(1 << (32 - dropped), dtype=torch.int64) << dropped
    beside = torch.tensor([0, 1, half - 1, half, half + 1, 2 * half - 1])
    values = (stored[:, None] + beside).reshape(-1).to(torch.int32).view(torch.float32)
    values = values[values.isfinite()].contiguous()
    options = (("work", dtype), ("keep", "all"), ("elect", False), ("normalize", False))
    kernel = Kernel("deltas", options)
    blend = Blend(kernel, torch.zeros_like(values), [values], [[1.0]] * 3)
    out = torch.empty_like(values)
    Runner(READY).write(blend, out, torch.float32)
    assert torch.equal(out, values.to(dtype).to(torch.float32))


@pytest.mark.slow
def test_a_kernel_is_compiled_beside_the_work_and_then_used():
    merged, base = tensors(5003, torch.float32, 1)
    blend, compiled = Blend(Kernel("nearswap"), base, merged, [[0.01]]), Compiled(worth=0)
    runner, signature = Runner(compiled), Signature.of(blend, "cpu", torch.float32, torch.float32)
    first, second = torch.empty(5003), torch.empty(5003)
    runner.write(blend, first, torch.float32)
    assert compiled.find(signature) is None
    compiled.wait()
    assert compiled.find(signature) is not None
    runner.write(blend, second, torch.float32)
    assert torch.equal(first, second)


@pytest.mark.slow
def test_without_a_compiler_it_stays_plain_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "/nonexistent")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    merged, base = tensors(5003, torch.bfloat16, 1)
    blend, compiled = Blend(Kernel("nearswap"), base, merged, [[0.01]]), Compiled(worth=0)
    runner, found = Runner(compiled), []
    for _ in range(3):
        out = torch.empty(5003, dtype=torch.bfloat16)
        runner.write(blend, out, torch.bfloat16)
        found.append(out)
        compiled.wait()
    assert compiled.find(Signature.of(blend, "cpu", torch.bfloat16, torch.bfloat16)) is None
    assert all(torch.equal(found[0], out) for out in found)
