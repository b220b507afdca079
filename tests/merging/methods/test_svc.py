"""SVC: an example by hand, its formula by singular values in float64, and what it does not touch."""

from __future__ import annotations

import pytest
import torch

from evomerge.testing.methods import merge, run, tensors


def test_by_hand() -> None:
    """Both sources say 1 along the first direction, one says 2 along the second: D = diag(2, 2).

    Along the first each finds 2 where it said 1: gamma = 2 / (2 + 2). Along the second one finds what it said, and the
    other said nothing: gamma = 2 / (1 + 1).
    """
    base = torch.zeros(2, 2)
    sources = [torch.diag(torch.tensor([1.0, 2.0])), torch.diag(torch.tensor([1.0, 0.0]))]
    found = merge("svc", sources, base, weight=[1.0, 1.0], alpha=0.5)
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.0, 2.0])), rtol=0, atol=1e-6)


def test_one_source_is_task_arithmetic() -> None:
    for alpha in (0.0, 0.5, 1.0):
        draw = torch.Generator().manual_seed(3)
        base, source = (torch.randn(7, 5, generator=draw) for _ in range(2))
        found = merge("svc", [source], base, weight=0.3, alpha=alpha)
        torch.testing.assert_close(found, base + 0.3 * (source - base), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(37, 23), (23, 37)])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_the_formula(shape: tuple[int, int], alpha: float) -> None:
    merged, base = tensors("svc", shape)
    assert base is not None
    weight = [0.3, 0.9, -0.4]
    parts = [w * (t.double() - base.double()) for w, t in zip(weight, merged, strict=True)]
    u, s, v = torch.linalg.svd(sum(parts[1:], parts[0]), full_matrices=False)
    expected = base.double()
    for r in range(len(s)):
        counts = []
        for part in parts:
            row = u[:, r] @ part
            counts.append(max(alpha, float(s[r] * v[r] @ row / (row @ row))))
        expected = expected + 1.2 * len(parts) / sum(counts) * s[r] * torch.outer(u[:, r], v[r])
    values = {"weight": weight, "alpha": alpha, "normalize": False, "lambda": 1.2}
    found = merge("svc", [t.double() for t in merged], base.double(), **values)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(merge("svc", merged, base, **values).double(), expected, rtol=0, atol=1e-5)


def test_vectors_are_plain_sums_and_a_source_without_weight_is_none() -> None:
    assert torch.equal(run("svc", (48,)), run("task_arithmetic", (48,)))
    draw = torch.Generator().manual_seed(5)
    base, one, two, three = (torch.randn(6, 4, generator=draw) for _ in range(4))
    without = merge("svc", [one, two], base, weight=[0.3, 0.5], alpha=0.5)
    assert torch.equal(merge("svc", [one, three, two], base, weight=[0.3, 0.0, 0.5], alpha=0.5), without)
    assert torch.equal(merge("svc", [one, two], base, weight=[0.0, 0.0], alpha=0.5), base)
