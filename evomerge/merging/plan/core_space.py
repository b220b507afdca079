"""Plans merges in Core Space (`kernels.core_space`): where every source is a LoRA adapter of the base, a matrix is
merged in the small space of their changes.

What is no change of low rank of a stored matrix (DoRA, modules that were trained whole, biases, experts) is merged as
ever, by the same method; what no adapter touches stays the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.lora_steps import LowRank
from evomerge.checkpoints.read import read_tensor
from evomerge.errors import InputError, Where
from evomerge.merging.kernels.core_space import CoreSpace
from evomerge.merging.kernels.products import one_thread, product
from evomerge.merging.plan.jobs import MergeJob, Operand, Read
from evomerge.recipe.recipe import Document
from evomerge.registry import METHODS

_WORK = "float32"
"""What cores are, and are merged in."""
Fetch = Callable[[Operand], torch.Tensor]
Passed = Callable[[MergeJob, Operand], MergeJob]


@dataclass(frozen=True)
class LowRankChanges:
    """The changes of one stored matrix by several adapters; as a tensor, their `CoreSpace` as one flat one.

    Attributes:
        steps: of each source; None: it leaves the matrix as it is.
        matrix: its rows and columns.
        rank: so many directions are kept; None: all.
        owner, where: of the matrix, for messages.
    """

    steps: tuple[LowRank | None, ...]
    matrix: tuple[int, int]
    rank: int | None
    owner: str = field(compare=False, default="")
    where: Where | None = field(compare=False, default=None)
    operands: tuple[()] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.steps, self.matrix, self.rank))

    @property
    def key(self) -> Hashable:
        """These changes."""
        return self

    @property
    def total(self) -> int:
        """The ranks of all changes together."""
        return sum(step.a.shape[0] for step in self.steps if step is not None)

    @property
    def core(self) -> tuple[int, int]:
        """The rows and columns of a core."""
        rows, columns = (min(self.total, n, self.rank or n) for n in self.matrix)
        return rows, columns

    @property
    def bytes(self) -> int:
        """Of the space."""
        (rows, columns), (left, right) = self.matrix, self.core
        return 4 * (rows * left + right * columns + len(self.steps) * left * right)

    def build(self, fetch: Fetch) -> torch.Tensor:
        """The space, flat. InputError where a change holds NaN or Inf."""
        return CoreSpace.of([None if s is None else self._read(s) for s in self.steps], self.rank).flat()

    def space(self, fetch: Fetch) -> CoreSpace:
        """The space, as views of the flat tensor that `fetch` gives."""
        return CoreSpace.of_flat(fetch(self), self.matrix, self.core, len(self.steps))

    def _read(self, step: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (read_tensor(info, self.where).double() for info in (step.a, step.b))
        if not bool((a.sum() + b.sum()).isfinite()):
            problem = f"{step.a.file}: the adapter of {self.owner} holds values that are NaN or Inf"
            raise InputError(problem, "the adapter is broken; use another one", self.where)
        b = b * step.scale
        return (a.T, b.T) if step.transposed else (b, a)


@dataclass(frozen=True)
class Core:
    """The core of one source's change; None: that of no change, which is zero."""

    changes: LowRankChanges
    source: int | None

    @property
    def key(self) -> Hashable:
        """This core."""
        return self

    @property
    def operands(self) -> tuple[Operand, ...]:
        """All changes of the matrix."""
        return (self.changes,)

    def build(self, fetch: Fetch) -> torch.Tensor:
        """The core."""
        cores = self.changes.space(fetch).cores
        return torch.zeros_like(cores[0]) if self.source is None else cores[self.source]


@dataclass(frozen=True, eq=False)
class Applied:
    """A stored matrix with the change of a merged core."""

    base: Operand
    core: MergeJob
    changes: LowRankChanges
    key: None = None

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The matrix, and the merge of the cores."""
        return (self.base, self.core)

    def build(self, fetch: Fetch) -> torch.Tensor:
        """The matrix, on the device of the merged core."""
        return self.changes.space(fetch).applied(fetch(self.base), self.merged(fetch))

    def merged(self, fetch: Fetch) -> torch.Tensor:
        """The merged core. One thread makes it: several would wait for each other longer than they compute."""
        with one_thread():
            return fetch(self.core)

    def factors(self, fetch: Fetch) -> tuple[torch.Tensor, torch.Tensor]:
        """The change alone as B [rows, k] and A [k, columns], float32, on the host."""
        space = self.changes.space(fetch)
        return product(space.u, self.merged(fetch).cpu()), space.v


def applied(job: MergeJob) -> Applied | None:
    """The merge in Core Space that a job is, maybe behind documents that only stack the outputs of others; else
    None."""
    while job.method == "passthrough" and job.parameters["scale"] == (1.0,):
        [operand] = job.inputs
        if isinstance(operand, Applied):
            return operand
        if not isinstance(operand, MergeJob):
            return None
        job = operand
    return None


class CorePlanner:
    """Plans one document that merges in Core Space.

    Attributes:
        largest: the most ranks that the adapters of one matrix have together, of those planned so far.
    """

    def __init__(self, document: Document, checkpoints: Mapping[str, Checkpoint], passed: Passed) -> None:
        """`checkpoints`: the opened ones, by reference; `passed`: makes of a job one that passes an operand through.

        Raises:
            InputError: the method merges no changes, or a model is no adapter of the base.
        """
        self._document, self._passed, self.largest = document, passed, 0
        self._by_key = {checkpoint.resolved(): checkpoint for checkpoint in checkpoints.values()}
        self._check(checkpoints)

    def job(self, job: MergeJob) -> MergeJob:
        """The job in Core Space, where all models change the tensor by low ranks, or not at all; else as it is."""
        steps = self._steps(job)
        if steps is None or job.base is None:
            return job
        if not any(steps):
            return self._passed(job, job.base)
        rows, columns = job.shape
        changes = LowRankChanges(steps, (rows, columns), self._document.core_rank, job.tensor, self._document.where)
        self.largest = max(self.largest, changes.total)
        merged = replace(
            job,
            inputs=tuple(Core(changes, i) for i in range(len(steps))),
            base=Core(changes, None),
            work=_WORK,
            out=_WORK,
            shape=changes.core,
        )
        return self._passed(job, Applied(job.base, merged, changes))

    def check_rank(self) -> None:
        """InputError where more directions are to be kept than there are, once all jobs are planned."""
        rank = self._document.core_rank
        if rank is not None and rank > self.largest:
            problem = f"core_rank is {rank}, and the adapters' ranks together are {self.largest}"
            raise InputError(problem, f"give 1 to {self.largest}, or leave it out", self._document.where)

    def _steps(self, job: MergeJob) -> tuple[LowRank | None, ...] | None:
        """How each model changes the base's tensor; None where one does otherwise than by low ranks."""
        base = job.base
        if not isinstance(base, Read) or base.model not in self._by_key:
            return None
        stored = self._by_key[base.model].tensors[base.tensor]
        steps: list[LowRank | None] = []
        for read in job.inputs:
            if not isinstance(read, Read) or read.model not in self._by_key:
                return None
            checkpoint = self._by_key[read.model]
            change = checkpoint.change(read.tensor)
            if change is None and checkpoint.tensors[read.tensor] == stored:
                steps.append(None)
            elif change is not None and change.source == stored and len(change.steps) == 1:
                [step] = change.steps
                if not isinstance(step, LowRank) or step.magnitude is not None:
                    return None
                steps.append(step)
            else:
                return None
        return tuple(steps)

    def _check(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        document = self._document
        if not METHODS[document.method].merges_changes:
            problem = f"{document.method} merges models, and Core Space holds changes of them"
            raise InputError(problem, "use task_arithmetic or ties, or leave out adapters: core", document.where)
        if document.base is None:
            raise InputError("adapters: core needs a base_model", "name the adapters' base", document.where)
        base = checkpoints.get(document.base)
        for entry in (entry for slice_ in document.all_slices for entry in slice_.inputs):
            model = checkpoints.get(entry.model)
            if entry.model == document.base or (model is not None and model is base):
                continue
            if base is None or model is None or not model.adapted_to(base):
                problem = f"{entry.model} is no LoRA adapter of {document.base}"
                mend = "list adapters of one base alone, or leave out adapters: core"
                raise InputError(problem, mend, entry.where)
