"""Reading, merging and writing at the same time, in a bounded amount of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from evomerge.checkpoints.headers import SIZES
from evomerge.checkpoints.preflight import check_finite, check_head
from evomerge.merging.plan.jobs import MergeJob, Operand, Read
from evomerge.merging.resident.bank import SourceBank

R = TypeVar("R")
LIMIT = 1_000_000_000


class StreamingBank(SourceBank):
    """A bank that keeps nothing: each tensor is read, into memory of its own, whenever it is asked for."""

    def __init__(self) -> None:
        super().__init__(keep=False)

    def tensor(self, ref: str, name: str) -> Tensor:
        """A tensor as it is stored. Raises InputError where it is damaged or not finite."""
        checkpoint = self.open(ref)
        tensor = checkpoint.read(name)
        check_finite(checkpoint, name, tensor)
        if name == checkpoint.embedding:
            check_head(checkpoint, tensor)
        return tensor

    def bytes_of(self, job: MergeJob) -> int:
        """The bytes of a job's result and of all stored tensors that it is made of."""
        reads = (self.open(read.model).tensors[read.tensor].bytes for read in reads_of(job))
        return sum(reads) + torch.Size(job.shape).numel() * SIZES[job.out]


def reads_of(operand: Operand) -> tuple[Read, ...]:
    """The stored tensors that an operand is made of, each once."""
    if isinstance(operand, Read):
        return (operand,)
    if isinstance(operand, MergeJob):
        parts = [*operand.inputs, *([operand.base] if operand.base is not None else [])]
    else:
        parts = list(operand.operands)
    return tuple(dict.fromkeys(read for part in parts for read in reads_of(part)))


def side_by_side(
    jobs: Sequence[MergeJob],
    run: Callable[[MergeJob], R],
    size: Callable[[MergeJob], int],
    threads: int,
    limit: int = LIMIT,
) -> Iterator[R]:
    """What `run` returns for each job, in their order, while other threads carry out the next ones.

    One thread reads and merges a whole job: many that share one small tensor wait more than they compute. Jobs begin
    as long as the `size` of all whose result the caller has not used yet stays within `limit`, or one at a time. An
    error of a job is raised in its turn, and no further job begins.
    """
    waiting: deque[tuple[int, Future[R]]] = deque()
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="merge", initializer=torch.set_num_threads, initargs=(1,))
    try:
        for job in jobs:
            needed = size(job)
            while waiting and sum(taken for taken, _ in waiting) + needed > limit:
                yield waiting[0][1].result()
                waiting.popleft()
            waiting.append((needed, pool.submit(run, job)))
        while waiting:
            yield waiting[0][1].result()
            waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # the threads' own setting is also that of threads to come
