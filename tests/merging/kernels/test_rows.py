"""Tensors that lie evenly spaced in one memory: found, and merged in one call with the bits of many."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from evomerge.merging.kernels import runner
from evomerge.merging.kernels.digest import NotFinite, tensor_record, tensor_records
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.kernels.masks import Draw
from evomerge.merging.kernels.rows import Joint, rows
from evomerge.merging.kernels.runner import Runner
from evomerge.registry import METHODS, load
from evomerge.testing.methods import arguments
from tests.merging.kernels.test_compiled import KINDS, READY, bits, compiled

NUMBER, SIZE = 4, 5003


def block(seed, dtype, apart=0, like=None):
    """A memory of rows that are `apart` elements from each other."""
    numbers = torch.randn(NUMBER, SIZE + apart, generator=torch.Generator().manual_seed(seed))
    if like is not None:
        numbers[:, :SIZE] = like.float() + 0.05 * numbers[:, :SIZE]
    return numbers.to(dtype)[:, :SIZE]


def test_rows_are_found():
    memory = torch.arange(60.0).view(3, 2, 10)
    assert torch.equal(rows(list(memory)), memory.view(3, 20))
    assert torch.equal(rows([m[0] for m in memory]), memory[:, 0])
    assert rows([m[0] for m in memory]).data_ptr() == memory.data_ptr()


@pytest.mark.parametrize(
    "tensors",
    [
        [torch.zeros(4), torch.zeros(4)],  # two memories
        [*torch.zeros(4, 4)[[0, 1]], torch.zeros(4)],
        [torch.zeros(4, 4)[i] for i in (1, 0)],
        [(m := torch.zeros(4, 4))[0], m[1], m[3]],  # not evenly spaced
        [m[1], m[0]],  # backwards
        [m[0], m[0]],
        [m.view(-1)[:8], m.view(-1)[4:12]],  # they overlap
        [m[0], m[1, :2]],
        [m[:, 0], m[:, 1]],  # not contiguous
        [m.view(-1)[0:4], m.view(torch.int32).view(-1)[4:8]],
    ],
)
def test_what_are_no_rows(tensors):
    assert rows(tensors) is None


@compiled
@pytest.mark.parametrize("kind", ["largest", "between", "drawn"])
@pytest.mark.parametrize("apart", [0, 7])
def test_one_call_gives_the_bits_of_many(kind, apart):
    name, dtype, values = KINDS[kind]
    base = block(0, dtype)
    sources = [block(1 + s, dtype, like=base) for s in range(3)]
    blends = []
    for row in range(NUMBER):  # each with numbers of its own
        inputs = Inputs([source[row] for source in sources], base[row], draw=Draw(5, f"experts.{row}.weight"))
        settings = {**values, "density": 0.2 + 0.1 * row, "weight": [0.7, 0.5 + row, -0.3]}
        blends.append(load(METHODS[name].function)(inputs, **arguments(name, 3, **settings)))
    joint, each = (block(9, dtype, apart) for _ in range(2))
    assert (found := Joint.of(blends, list(joint))) is not None
    assert found.signature(dtype).apart == (apart > 0, *[False] * 4)
    Runner(READY).write_all(blends, list(joint), dtype)
    for blend, out in zip(blends, each, strict=True):
        Runner().write(blend, out, dtype)
    assert torch.equal(bits(joint.contiguous()), bits(each.contiguous()))
    assert not torch.equal(each, base)


def test_others_are_merged_one_by_one():
    """Outputs that are no rows, a kernel that differs, and nothing compiled."""
    name, dtype, values = KINDS["largest"]
    base, sources = block(0, dtype), [block(1 + s, dtype) for s in range(3)]
    inputs = [Inputs([s[row] for s in sources], base[row]) for row in range(2)]
    function = load(METHODS[name].function)
    alike = [function(i, **arguments(name, 3, weight=[0.7, 0.5, 0.3], **values)) for i in inputs]
    unlike = [alike[0], function(inputs[1], **arguments(name, 3, weight=[0.7, 0.5, 0.3], density=1.0))]
    for blends in (alike, unlike):
        outs, expected = [torch.zeros(SIZE, dtype=dtype) for _ in blends], torch.zeros(SIZE, dtype=dtype)
        Runner(READY if blends is unlike else None).write_all(blends, outs, dtype)
        for blend, out in zip(blends, outs, strict=True):
            Runner().write(blend, expected, dtype)
            assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("size", "most", "calls"), [(200, 800, 1), (200, 400, 2), (200, 399, 0), (1, 800, 0), (63, 800, 0)]
)
def test_calls_are_neither_too_small_nor_too_large(monkeypatch, size, most, calls):
    """A compiler takes a length of 1 for a constant, and numbers elements with 32 bits."""
    asked = []
    ready = SimpleNamespace(find=lambda signature: asked.append(signature.apart), accompany=lambda s: None,
                            spent=lambda *about: None)  # fmt: skip
    monkeypatch.setattr(runner, "_JOINT", most)
    memory, sources = torch.zeros(NUMBER, size), torch.ones(NUMBER, size)
    blends = [Blend(Kernel("weighted"), None, [source], [[0.5]]) for source in sources]
    Runner(ready).write_all(blends, list(memory), torch.float32)
    assert torch.equal(memory, torch.full((NUMBER, size), 0.5))
    assert sum(apart is not None for apart in asked) == calls


@compiled
@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 5002), (torch.float32, 5003), (torch.bfloat16, 5003)])
@pytest.mark.parametrize("apart", [0, 6])
def test_lines_of_a_digest(dtype, size, apart):
    """Those of an odd number of 16-bit elements have a rest, and are no rows of words."""
    memory = torch.randn(NUMBER, size + apart, generator=torch.Generator().manual_seed(1)).to(dtype)[:, :size]
    named = [(f"experts.{i}", row) for i, row in enumerate(memory)]
    assert tensor_records(named, Runner(READY)) == [tensor_record(*each) for each in named]
    memory[2, 17] = float("nan")
    with pytest.raises(NotFinite, match=r"experts\.2"):
        tensor_records(named, Runner(READY))
