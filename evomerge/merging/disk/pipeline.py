"""Reads, merges and writes tensors at the same time, in a bounded amount of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from evomerge.checkpoints.headers import SIZES
from evomerge.merging.kernels.inputs import Kept
from evomerge.merging.plan.core_space import Applied
from evomerge.merging.plan.jobs import MergeJob, Operand, Read
from evomerge.merging.resident.bank import SourceBank
from evomerge.registry import METHODS

R = TypeVar("R")
_WORKED = 5 * SIZES["float32"]
"""Bytes an element that a merge by singular directions, or in Core Space, works in: five matrices in float32."""

LIMIT = 1_000_000_000
"""The most bytes of all jobs in flight."""


class StreamingBank(SourceBank):
    """A bank that keeps nothing: it reads a tensor, into new memory, each time."""

    def __init__(self, kept: Kept | None = None) -> None:
        super().__init__(keep=False, kept=kept)

    def bytes_of(self, job: MergeJob) -> int:
        """The bytes of a job's result, of all stored tensors that it reads, of the factors that it needs, and of
        what a merge by singular directions, or in Core Space, works in."""
        reads = (self.open(read.model).tensors[read.tensor].reading for read in reads_of(job))
        factors = sum(wanted.bytes(job.shape) for wanted in job.decomposed.values())
        elements = torch.Size(job.shape).numel()
        whole = (job.method in METHODS and METHODS[job.method].spectral) or isinstance(job.inputs[0], Applied)
        worked = _WORKED * elements if whole else 0
        return sum(reads) + elements * SIZES[job.out] + factors + worked


def reads_of(operand: Operand) -> tuple[Read, ...]:
    """The stored tensors that an operand reads, each once."""
    if isinstance(operand, Read):
        return (operand,)
    if isinstance(operand, MergeJob):
        parts = [*operand.inputs, *([operand.base] if operand.base is not None else [])]
    else:
        parts = list(operand.operands)
    return tuple(dict.fromkeys(read for part in parts for read in reads_of(part)))


def run_in_order(
    jobs: Sequence[MergeJob],
    run: Callable[[MergeJob], R],
    size: Callable[[MergeJob], int],
    threads: int,
    limit: int = LIMIT,
) -> Iterator[R]:
    """Yields the result of `run` for each job, in their order, while other threads run the next ones.

    One thread reads and merges a whole job: threads that share one small tensor wait more than they compute. An error
    of a job is raised in its turn, and no further job begins.

    Args:
        size: the bytes that a job takes until the caller has used its result.
        limit: the most bytes of all jobs in flight; a larger job runs alone.
    """
    in_flight: deque[tuple[int, Future[R]]] = deque()
    taken = 0  # bytes of these; counted up and down, as small tensors are thousands
    threads_before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="merge", initializer=torch.set_num_threads, initargs=(1,))
    try:
        for job in jobs:
            # Admission: a job begins when all bytes in flight, with its own, stay within the limit. Until then the
            # oldest result goes to the caller, and leaves the count only after the caller has used it (after `yield`).
            needed = size(job)
            while in_flight and taken + needed > limit:
                yield in_flight[0][1].result()
                taken -= in_flight.popleft()[0]
            in_flight.append((needed, pool.submit(run, job)))
            taken += needed
        while in_flight:
            yield in_flight[0][1].result()
            in_flight.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads_before)  # the pool's threads have set it for all threads to come
