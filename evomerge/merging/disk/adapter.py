"""Takes the change that a merge makes to its base apart, into a LoRA adapter.

In general, a matrix changes by D = U S V^T, of which the r largest singular directions are kept: B = U S^1/2 and A =
S^1/2 V^T. By Eckart and Young (1936) nothing of rank r is nearer to D. What is left out has the norm (|D|^2 - s_1^2 -
... - s_r^2)^1/2.
Vectors and all that has no rows and columns is held whole. A merge in Core Space is U C V^T already: B = U C, A = V^T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS
from evomerge.errors import InputError, TrialError, Where
from evomerge.merging.disk.adapter_places import AdapterPlace, adapter_places
from evomerge.merging.disk.pipeline import StreamingBank, run_in_order
from evomerge.merging.kernels.factors import Factors
from evomerge.merging.kernels.products import product
from evomerge.merging.plan.core_space import Applied, applied
from evomerge.merging.plan.jobs import COPY, MergeJob, MergePlan
from evomerge.merging.resident.execute import Execution, execute

_FLAG = Where("--rank")
_WORKED = 6
"""Matrices in float32 that one decomposition works in."""


@dataclass(frozen=True)
class AdaptedTensor:
    """One tensor that the merge changes.

    Attributes:
        name: of the tensor in the base.
        module: what PEFT calls its module; None: no adapter can hold its change.
        norm: of its change (Frobenius).
        error: the norm of the part of it that the adapter lacks.
        energy: the sums of the squares of its largest singular values, one more each time; none of tensors held whole.
    """

    name: str
    module: str | None
    norm: float
    error: float
    energy: tuple[float, ...] = ()

    @property
    def relative(self) -> float:
        """The share of the change that is lacking."""
        return self.error / self.norm if self.norm else 0.0

    def least_at(self, rank: int) -> float:
        """The norm of what must be lacking at a rank."""
        if not self.energy:
            return self.error
        return math.sqrt(max(0.0, self.norm**2 - self.energy[min(rank, len(self.energy)) - 1]))


@dataclass(frozen=True)
class AdapterContent:
    """What an adapter holds.

    Attributes:
        rank: of its matrices.
        tensors: A, B and whole tensors, float32, by their names in the adapter.
        adapted: what changed, in the order of the model.
        modules: the names of the modules with A and B.
        saved: those of modules that are held whole.
        biased: whether biases of linear layers are among them.
        turned: whether some weights are stored as [inputs, outputs].
    """

    rank: int
    tensors: Mapping[str, Tensor]
    adapted: tuple[AdaptedTensor, ...]
    modules: tuple[str, ...]
    saved: tuple[str, ...] = ()
    biased: bool = False
    turned: bool = False

    @property
    def norm(self) -> float:
        """Of the whole change."""
        return math.hypot(*(tensor.norm for tensor in self.adapted))

    @property
    def error(self) -> float:
        """The share of the whole change that is lacking."""
        return math.hypot(*(tensor.error for tensor in self.adapted)) / self.norm if self.norm else 0.0

    @property
    def by_rank(self) -> dict[int, float]:
        """The least share that must be lacking at lower ranks, which are powers of two, and at the adapter's own."""
        ranks = [2**i for i in range(self.rank.bit_length()) if 2**i < self.rank]
        norm = self.norm or 1.0
        return {rank: math.hypot(*(t.least_at(rank) for t in self.adapted)) / norm for rank in [*ranks, self.rank]}

    @property
    def lost(self) -> list[AdaptedTensor]:
        """The tensors whose change no adapter can hold."""
        return [tensor for tensor in self.adapted if tensor.module is None]


def adapter_content(
    planned: MergePlan,
    base: Checkpoint,
    rank: int,
    bank: StreamingBank,
    device: str = "cpu",
    progress: Callable[[str, float], None] | None = None,
    whole: MergePlan | None = None,
) -> AdapterContent:
    """The adapter that turns `base` into a planned merge, as far as its rank allows. `whole`: the plan with all
    directions of Core Space, which errors are measured against; None: `planned`.

    Raises:
        InputError: the rank is none, the merge has other layers, tensors or tokens than the base, or equals it.
    """
    jobs = [job for job in planned.jobs.values() if job.method != COPY]
    # A head that is the base's embeddings can have a change of its own.
    places = adapter_places(base.config, {job.tensor: job.shape for job in jobs})
    _check_shapes(jobs, base)
    _check_rank(rank, jobs, places)
    parts: list[_Part] = []

    def run(job: MergeJob) -> _Part | None:
        merged = applied(job)
        if merged is not None:
            against = merged if whole is None else applied(whole.jobs[job.tensor])
            return _core_part(job, merged, against or merged, places.get(job.tensor, ()), bank, device)
        return _part(job, base, rank, places.get(job.tensor, ()), bank, device)

    def size(job: MergeJob) -> int:
        return bank.bytes_of(job) + _WORKED * 4 * math.prod(job.shape)

    threads = torch.get_num_threads() if device == "cpu" else 1
    for done, part in enumerate(run_in_order(jobs, run, size, threads), start=1):
        parts += [] if part is None else [part]
        if progress:
            progress(f"decomposed {jobs[done - 1].tensor}", done / len(jobs))
    if not parts:
        raise InputError(f"the model is {base.reference}: there is no change to write", "give another model")
    return _gathered(parts, rank)


@dataclass(frozen=True)
class _Part:
    """The change of one tensor: B and A as [rows, rank] and [rank, columns] of the stored matrix, or the whole."""

    told: AdaptedTensor
    places: tuple[AdapterPlace, ...]
    factors: tuple[Tensor, Tensor] | None = None
    whole: Tensor | None = None


def _part(
    job: MergeJob,
    base: Checkpoint,
    rank: int,
    places: tuple[AdapterPlace, ...],
    bank: StreamingBank,
    device: str,
) -> _Part | None:
    """The change of a job's tensor; None where there is none."""
    try:
        merged = execute(job, bank, device).cpu().float()
    except TrialError as error:
        raise InputError(str(error), "change the recipe's parameters") from None
    delta = merged - bank.tensor(base.resolved(), _stored(job.tensor, base)).float()
    norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    if norm == 0:
        return None
    if not places:
        return _Part(AdaptedTensor(job.tensor, None, norm, norm), ())
    module = places[0].module
    if not all(place.low_rank for place in places):
        return _Part(AdaptedTensor(job.tensor, module, norm, 0.0), places, whole=merged)
    found = Factors.of(delta, min(rank, *delta.shape))
    root = found.s.sqrt()
    left, right = found.u * root, root[:, None] * found.v
    lacking = float(torch.linalg.vector_norm(delta.sub_(product(left, right)), dtype=torch.float64))
    energy = tuple(found.s.double().square().cumsum(0).tolist())
    return _Part(AdaptedTensor(job.tensor, module, norm, lacking, energy), places, (left, right))


def _core_part(
    job: MergeJob,
    merged: Applied,
    against: Applied,
    places: tuple[AdapterPlace, ...],
    bank: StreamingBank,
    device: str,
) -> _Part | None:
    """The change of a merge in Core Space, and what it lacks of another one."""
    fetch = Execution(bank, torch.device(device)).fetch
    left, right = merged.factors(fetch)
    b, a = (left, right) if against is merged else against.factors(fetch)
    # |B A|^2 = |B R^T|^2 with A^T = Q R: no product is as large as the matrix.
    values = torch.linalg.svdvals(product(b, torch.linalg.qr(a.T).R.T).double())
    energy = values.square().cumsum(0).tolist()
    norm = math.sqrt(energy[-1])
    if norm == 0:
        return None
    lacking = 0.0
    if against is not merged:
        both = product(torch.cat([b, -left], dim=1), torch.linalg.qr(torch.cat([a, right]).T).R.T)
        lacking = float(torch.linalg.vector_norm(both, dtype=torch.float64))
    told = AdaptedTensor(job.tensor, places[0].module if places else None, norm, lacking, tuple(energy))
    if places and all(place.low_rank for place in places):
        return _Part(told, places, (left, right))
    held = replace(told, error=0.0 if places else norm, energy=())
    return _Part(held, places, whole=execute(job, bank, device).cpu().float() if places else None)


def _stored(tensor: str, base: Checkpoint) -> str:
    """The base's tensor of that name: its embeddings for a head that it ties to them."""
    return tensor if tensor in base.tensors else str(base.embedding)


def _gathered(parts: list[_Part], rank: int) -> AdapterContent:
    """The adapter of all changes. Matrices of fewer rows or columns than the rank are filled up with zeros, so that all
    have one rank, as most programs expect."""
    tensors: dict[str, Tensor] = {}
    low = {place.module for part in parts if part.factors is not None for place in part.places}
    saved: dict[str, None] = {}
    for part in parts:
        for place in part.places:
            keys = place.keys(place.module in low)
            if part.factors is None:
                assert part.whole is not None
                tensors[keys[0]] = part.whole
                if place.module not in low and place.parameter != "bias":
                    saved[place.module] = None
                continue
            left, right = part.factors
            b, a = (right.T, left.T) if place.turned else (left, right)
            tensors[keys[0]] = _filled(a, rank, 0)
            tensors[keys[1]] = _filled(b, rank, 1)
    every = [place for part in parts for place in part.places]
    return AdapterContent(
        rank=rank,
        tensors=tensors,
        adapted=tuple(part.told for part in parts),
        modules=tuple(dict.fromkeys(p.module for part in parts if part.factors is not None for p in part.places)),
        saved=tuple(saved),
        biased=any(place.kind == "whole" and place.parameter == "bias" for place in every),
        turned=any(place.kind == "linear" and place.turned for place in every),
    )


def _filled(matrix: Tensor, rank: int, axis: int) -> Tensor:
    """The matrix with zeros behind its `axis`, up to the rank; in memory of its own."""
    shape = list(matrix.shape)
    shape[axis] = rank
    filled = torch.zeros(shape)
    filled.narrow(axis, 0, matrix.shape[axis]).copy_(matrix)
    return filled


def _check_rank(rank: int, jobs: list[MergeJob], places: Mapping[str, tuple[AdapterPlace, ...]]) -> None:
    """InputError for a rank of 0, or one that no matrix has."""
    full = max((min(j.shape) for j in jobs if any(p.low_rank for p in places.get(j.tensor, ()))), default=0)
    if not 1 <= rank <= full:
        raise InputError(f"{rank} is no rank of a change: the matrices have 1 to {full}", "give another one", _FLAG)


def _check_shapes(jobs: list[MergeJob], base: Checkpoint) -> None:
    """InputError where the merge is not of the base's form."""
    mend = "write a whole checkpoint: leave out --as-adapter"
    for job in jobs:
        info = base.tensors.get(_stored(job.tensor, base))
        if info is None:
            raise InputError(f"{base.reference} has no {job.tensor}, so no adapter of it can change it", mend)
        if tuple(info.shape) != tuple(job.shape):
            problem = f"{job.tensor} is {list(job.shape)}, in {base.reference} {list(info.shape)}"
            raise InputError(f"{problem}: an adapter has its base's layers and tokens", mend)
    made = {job.tensor for job in jobs}
    missing = next((n for n, info in base.tensors.items() if info.dtype in FLOATS and n not in made), None)
    if missing is not None:
        problem = f"the model has no {missing}, which {base.reference} has"
        raise InputError(f"{problem}: an adapter takes nothing away", mend)
