"""What every merge method must hold to; a new line in the registry is tested by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from evomerge.merge.masks import Draw
from evomerge.registry import METHODS, load

NAMES = sorted(METHODS)
SHAPES = [(37, 23), (48,), (1,), (0,)]


def tensors(name, shape, dtype=torch.float32, count=None):
    """(merged tensors, base) as the method takes them."""
    method = METHODS[name]
    least, most = method.sources
    number = count or int(min(max(least, 3), most))
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(shape, generator=generator)
    made = [(base + 0.1 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(number)]
    return made, None if method.base == "ordinary" else base.to(dtype)


def arguments(name, count, **values):
    """Every parameter at `values`, else at its default, else at where a search starts."""
    method = METHODS[name]
    found = {}
    for p in method.parameters:
        value = values.get(p.name, p.init if p.default is None else p.default)
        found[p.argument] = [value] * count if p.scope == "source" else value
    if method.stochastic:
        found["draw"] = Draw(3, "model.layers.0.mlp.up_proj.weight")
    return found


def run(name, shape=(37, 23), dtype=torch.float32, **values):
    merged, base = tensors(name, shape, dtype)
    return load(METHODS[name].function)(merged, base, **arguments(name, len(merged), **values))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_inputs_are_not_changed(name, dtype):
    merged, base = tensors(name, (37, 23), dtype)
    given = [t.clone() for t in (*merged, *([base] if base is not None else []))]
    for density in (1.0, 0.4):
        load(METHODS[name].function)(merged, base, **arguments(name, len(merged), density=density))
    kept = (*merged, *([base] if base is not None else []))
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_kept(name, shape):
    found = run(name, shape, density=0.5)
    assert found.shape == shape
    assert found.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_math_is_in_float32_at_least(name, dtype):
    found = run(name, dtype=dtype, scale=0.5)
    assert found.dtype == torch.float32
    assert run(name, dtype=torch.float64, scale=0.5).dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_inputs_give_equal_bits_on_any_number_of_threads(name, dtype):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 1):
            torch.set_num_threads(threads)
            found.append(run(name, (700, 131), dtype, density=0.37))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", NAMES)
def test_one_model_alone_comes_back(name):
    """A weighting that leaves one model gives that model; t at an end gives that end."""
    method = METHODS[name]
    (model, *_), base = tensors(name, (37, 23), count=1)
    values = {"weight": 1.0, "density": 1.0, "lambda": 1.0, "t": 1.0, "scale": 1.0, "normalize": False}
    found = load(method.function)([model], base, **arguments(name, 1, **values))
    assert torch.allclose(found, model, rtol=0, atol=1e-6)
    if base is not None:
        nothing = load(method.function)([model], base, **arguments(name, 1, **{**values, "weight": 0.0, "t": 0.0}))
        assert torch.allclose(nothing, base, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if METHODS[n].base == "subtracted"])
def test_models_equal_to_the_base_give_the_base(name):
    _, base = tensors(name, (37, 23))
    found = load(METHODS[name].function)([base, base], base, **arguments(name, 2, density=0.5))
    assert torch.equal(found, base)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_a_legal_start(name):
    for p in METHODS[name].parameters:
        assert p.scope in ("source", "tensor")
        assert p.kind is bool or p.low <= p.init <= p.high


def test_results_do_not_move_with_the_hash_seed():
    code = (
        "import sys, hashlib, torch; sys.path.insert(0, sys.argv[1]); import test_method_conformance as t\n"
        "print([hashlib.sha256(t.run(n, density=0.4).numpy().tobytes()).hexdigest() for n in t.NAMES])"
    )
    folder = __file__.rpartition("/")[0]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, folder],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "7")
    }
    assert len(outputs) == 1
