"""Plain torch on parts of tensors, by threads that compute alone."""

from __future__ import annotations

import threading

import pytest
import torch

from evomerge.merging.kernels.arithmetic import fixed_point, fixed_scale
from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.kernels.threads import each


@pytest.fixture
def threads():
    """Sets torch's number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_order_from_threads_that_compute_alone(threads, count):
    threads(count)
    leaf = torch.ones(2, requires_grad=True)

    def act(number):
        return number, (leaf * number).requires_grad, torch.get_num_threads()

    found = each(act, range(20))
    assert [number for number, *_ in found] == list(range(20))
    assert {(gradient, alone) for _, gradient, alone in found} == {(False, 1)}
    assert torch.get_num_threads() == count


def test_threads_that_begin_later_have_all_of_torch_s(threads):
    threads(3)
    each(abs, range(9))
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [3]


def test_an_error_is_raised(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        each(lambda number: 1 // number, range(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_full_norms_are_sums_in_fixed_point(dtype):
    """By the histogram of a 16-bit delta, or by a pass over it: the same whole numbers."""
    numbers = torch.Generator().manual_seed(0)
    base = (torch.randn(5003, generator=numbers) * 0.02).to(dtype)
    source = (base + 0.01 * torch.randn(5003, generator=numbers)).to(dtype)
    sizes = (source - base).abs().float()
    scale = fixed_scale(float(sizes.max()))
    expected = float(fixed_point(sizes, scale).sum(dtype=torch.float64)) / scale
    assert Inputs([source], base).full_norms() == [expected]
