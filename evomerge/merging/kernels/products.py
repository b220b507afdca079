"""Multiplies matrices with the same bits on any number of threads.

Libraries for linear algebra add up in another order with another number of threads. So each block of rows is the work
of one thread, and the threads share the blocks. On another processor, or with another library, the last bits differ.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import spans

_ROWS = 256
"""Rows of a block: enough for a thread to work at full speed, few enough for all threads to have some."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch, and the libraries that it calls, use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [m, k] times b [k, n], in their dtype, on their device."""
    threads = torch.get_num_threads()
    if a.device.type != "cpu" or not len(a):
        return a @ b
    blocks = [a[rows] for rows in spans(len(a), _ROWS)]
    with one_thread():
        if threads == 1 or len(blocks) == 1:
            parts = [block @ b for block in blocks]
        else:
            parts = list(_pool(threads).map(lambda block: block @ b, blocks))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the products of two tensors' elements, float64, on their device."""
    with one_thread():
        return (a * b).sum(dtype=torch.float64)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that work inside of `one_thread` only. They set no number themselves: it is that of all threads."""
    return ThreadPoolExecutor(threads, "product")
