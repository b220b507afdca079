"""Isotropy: an example by hand, the singular values that it leaves, and what it does not touch."""

from __future__ import annotations

import pytest
import torch

import evomerge
from evomerge.testing.methods import merge, run, tensors


def test_by_hand() -> None:
    """D = diag(3, 1): the mean singular value is 2, so half the way is diag(2.5, 1.5)."""
    base, source = torch.zeros(2, 2), torch.diag(torch.tensor([3.0, 1.0]))
    for share, expected in ((0.0, [3.0, 1.0]), (0.5, [2.5, 1.5]), (1.0, [2.0, 2.0])):
        found = merge("isotropy", [source], base, weight=1.0, isotropy=share)
        torch.testing.assert_close(found, torch.diag(torch.tensor(expected)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(37, 23), (23, 37), (3, 8, 5)])
@pytest.mark.parametrize("normalize", [False, True])
def test_singular_values_go_to_their_mean(shape: tuple[int, ...], normalize: bool) -> None:
    merged, base = tensors("isotropy", shape)
    assert base is not None
    weight = [0.3, 0.9, -0.4]
    share, factors = 0.7, [w / (sum(weight) if normalize else 1.0) for w in weight]
    total = sum(w * (t.double() - base.double()) for w, t in zip(factors, merged, strict=True))
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    mean = s.mean(-1, keepdim=True)
    expected = base + 1.2 * (u * ((1 - share) * s + share * mean).unsqueeze(-2)) @ v
    values = {"weight": weight, "isotropy": share, "normalize": normalize, "lambda": 1.2}
    found = merge("isotropy", merged, base, **values)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    exact = merge("isotropy", [t.double() for t in merged], base.double(), **values)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-9)


def test_none_is_task_arithmetic_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(run("isotropy", dtype=dtype), run("task_arithmetic", dtype=dtype))
    for shape in [(48,), (7, 1), (1, 9)]:
        assert torch.equal(run("isotropy", shape, isotropy=1.0), run("task_arithmetic", shape))


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"])
def test_embeddings_heads_and_vectors_are_plain_sums(name: str) -> None:
    shape = (9,) if "norm" in name else (9, 6)
    draw = torch.Generator().manual_seed(4)
    base, one, two = ({name: torch.randn(shape, generator=draw)} for _ in range(3))
    plain = evomerge.merge_tensors(base, {"one": one, "two": two}, "task_arithmetic", {"weight": 0.4})
    found = evomerge.merge_tensors(base, {"one": one, "two": two}, "isotropy", {"weight": 0.4, "isotropy": 1.0})
    assert torch.equal(found[name], plain[name])
    if len(shape) == 2:
        inner = [{"mlp.up_proj.weight": t[name]} for t in (base, one, two)]
        parameters = {"weight": 0.4, "isotropy": 1.0}
        moved = evomerge.merge_tensors(inner[0], {"one": inner[1], "two": inner[2]}, "isotropy", parameters)
        assert not torch.allclose(moved["mlp.up_proj.weight"], plain[name])
