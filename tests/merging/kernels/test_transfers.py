"""Pieces that come from elsewhere: never overwritten while a kernel may still read them."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from evomerge.merging.kernels import runner
from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend
from evomerge.merging.kernels.runner import Runner
from evomerge.merging.kernels.transfers import Immediate, moved_chunks

CPU = torch.device("cpu")


class Late:
    """A device whose kernels run as late as the order between them and the copies allows."""

    def __init__(self):
        self.waiting = {0: [], 1: []}
        self.filled = set()
        self.log = []

    @contextmanager
    def filling(self, slot):
        self.run(slot)
        self.log.append(f"fill {slot}")
        yield
        self.filled.add(slot)

    @contextmanager
    def reading(self, slot):
        assert slot in self.filled
        self.now = slot
        self.log.append(f"read {slot}")
        yield

    def launch(self, kernel):
        self.waiting[self.now].append(kernel)

    def run(self, slot):
        for kernel in self.waiting[slot]:
            kernel()
        self.waiting[slot] = []

    def end(self):
        self.run(0)
        self.run(1)
        self.log.append("end")


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 40])
def test_kernels_that_run_late_read_their_own_chunk(count):
    far, here, order, out = torch.arange(float(count)), torch.arange(float(count)) * 100, Late(), torch.zeros(count)
    for span, (a, b) in moved_chunks([far, here], [True, False], CPU, 8, order):
        assert b.data_ptr() == here[span].data_ptr() or not count
        order.launch(lambda span=span, a=a, b=b: out[span].copy_(a + b))
    assert torch.equal(out, far + here)
    assert order.log[-1] == "end"


def test_no_more_than_two_buffers_are_used():
    far = torch.arange(1000.0)
    places = {chunk.data_ptr() for _, [chunk] in moved_chunks([far], [True], CPU, 8, Immediate())}
    assert len(places) == 2
    assert far.data_ptr() not in places


def test_a_caller_that_stops_leaves_nothing_behind():
    order = Late()
    chunks = moved_chunks([torch.arange(100.0)], [True], CPU, 8, order)
    next(chunks)
    chunks.close()
    assert order.log[-1] == "end"


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize("count", [0, 5, 64, 1000])
def test_a_blend_of_tensors_from_elsewhere(based, count, monkeypatch):
    """As on a GPU, with every stored tensor brought over in small chunks."""
    base, *tensors = torch.randn(4, count)
    blend = Blend(Kernel("weighted"), None, tensors, [[0.5, 0.25, 2.0]])
    if based:
        blend = Blend(Kernel("nearswap"), base, tensors[:1], [[0.01]])
    wanted, out = torch.empty(count), torch.empty(count)
    Runner().write(blend, wanted, torch.float32)
    monkeypatch.setattr(runner, "is_away", lambda tensor, device: True)
    monkeypatch.setattr(runner, "_MOVED", 64)
    Runner().write(blend, out, torch.float32)
    assert torch.equal(out, wanted)
