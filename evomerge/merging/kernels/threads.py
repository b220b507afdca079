"""Runs plain torch on parts of tensors in several threads, each of which computes alone.

torch's own threads share every operation and wait for each other at its end. Where other programs want the processors,
each such wait can take a time slice of the scheduler, for thousands of operations of a tenth of a millisecond.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

_FREED = 16 << 20
"""Bytes. The C library keeps twice as much as the largest block that it gave back, up to 32 MB; less, and threads would
return their memory to the system after each chunk, to have it cleared for the next one."""

T = TypeVar("T")
R = TypeVar("R")


def each(act: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`act` of all items, without gradients, in their order. It takes as many threads as torch has here."""
    listed, threads = list(items), torch.get_num_threads()
    without_gradients = torch.no_grad()(act)  # what the caller has set holds in its thread alone
    if min(threads, len(listed)) < 2:
        return [without_gradients(item) for item in listed]
    return list(_pool(threads, os.getpid()).map(without_gradients, listed))


@functools.lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads in which torch computes with one thread. A forked `process` has none of its parent's."""
    started = Barrier(threads)

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # without this the first operation would take the number of all threads
        started.wait()

    torch.empty(_FREED, dtype=torch.uint8)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="plain", initializer=start)
    list(pool.map(abs, range(threads)))  # all threads begin now
    torch.set_num_threads(threads)  # theirs is also the number of all threads to come
    return pool
