"""Reading, merging and writing at the same time, each in a bounded amount of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from torch import Tensor

from evomerge.checkpoints.preflight import check_finite, check_head
from evomerge.checkpoints.write import CheckpointWriter
from evomerge.merge.bank import SourceBank
from evomerge.merge.jobs import Job, Operand, Read

AHEAD = 256_000_000
BEHIND = 256_000_000
_READERS = 2


class ReadAhead(SourceBank):
    """A bank that reads the next jobs' tensors while one is carried out, and keeps none beyond its job."""

    def __init__(self, limit: int = AHEAD) -> None:
        """`limit`: the most bytes that are read beyond those of the current job."""
        super().__init__(keep=False)
        self._limit = limit
        self._current: dict[Read, Future[Tensor]] = {}

    def each(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """The jobs in their order; while the caller has one, `tensor` answers from what was read for it."""
        needs = [_reads(job) for job in jobs]
        sizes = [sum(self.open(r.model).tensors[r.tensor].bytes for r in reads) for reads in needs]
        window: deque[dict[Read, Future[Tensor]]] = deque()
        begun = ahead = 0
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        try:
            for number, job in enumerate(jobs):
                while begun < len(jobs) and (begun <= number or ahead + sizes[begun] <= self._limit):
                    window.append({read: pool.submit(self._read, read) for read in needs[begun]})
                    ahead += sizes[begun] if begun > number else 0
                    begun += 1
                self._current = window.popleft()
                yield job
                self._current = {}
                ahead -= sizes[number + 1] if begun > number + 1 else 0
        finally:
            pool.shutdown(cancel_futures=True)

    def tensor(self, ref: str, name: str) -> Tensor:
        """A tensor as it is stored. Raises InputError where it is damaged or not finite."""
        checkpoint = self.open(ref)
        read = Read(checkpoint.resolved(), name)
        tensor = self._current[read].result() if read in self._current else self._read(read)
        # Checked here, not where it is read: torch would start threads of its own for every reader
        check_finite(checkpoint, name, tensor)
        if name == checkpoint.embedding:
            check_head(checkpoint, tensor)
        return tensor

    def _read(self, read: Read) -> Tensor:
        return self.open(read.model).read(read.tensor)


def _reads(operand: Operand) -> tuple[Read, ...]:
    """The stored tensors that an operand is made of, each once."""
    if isinstance(operand, Read):
        return (operand,)
    if isinstance(operand, Job):
        parts = [*operand.inputs, *([operand.base] if operand.base is not None else [])]
    else:
        parts = list(operand.operands)
    return tuple(dict.fromkeys(read for part in parts for read in _reads(part)))


class WriteBehind:
    """Context manager: writes tensors on a thread of its own, at most `limit` bytes behind (or one tensor).

    An error of the writer is raised by a later `add`, or at the end.
    """

    def __init__(self, writer: CheckpointWriter, limit: int = BEHIND) -> None:
        self._writer, self._limit = writer, limit
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._waiting: deque[tuple[int, Future[None]]] = deque()

    def __enter__(self) -> Self:
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor of the layout; the caller must not change it any more."""
        size = tensor.numel() * tensor.element_size()
        while self._waiting and (self._waiting[0][1].done() or sum(n for n, _ in self._waiting) + size > self._limit):
            self._waiting.popleft()[1].result()
        self._waiting.append((size, self._pool.submit(self._writer.add, name, tensor)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            for _, written in self._waiting:
                written.result()
