"""Decomposes deltas by their singular values: D = U diag(s) V^T (Golub & Van Loan 2013, "Matrix Computations", section
2.4).

Decompositions are float32, of the host, and facts of the stored tensors, remembered between candidates. They take one
thread: libraries for linear algebra add up in another order with another number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.kernels.digest import tensor_record
from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.kernels.products import one_thread
from evomerge.registry import Decomposed, directions

_EXTRA, _ROUNDS = 10, 2
"""Directions that are sampled beyond those that are kept, and rounds of the power iteration."""

_VERSION = 1
"""Goes up when `Factors.of` gives other bits."""


@dataclass(frozen=True)
class Wanted:
    """Which singular directions of a delta a merge needs.

    Attributes:
        top: how many of the largest; None: all.
        rounds: of the power iteration that finds them in a sample; None: they are those of the whole decomposition.
        centred: whether they are of the delta's difference from the mean of all deltas.
        copies: how many times so much memory is held: with another basis of them, twice.
    """

    top: int | None = None
    rounds: int | None = _ROUNDS
    centred: bool = False
    copies: int = 1

    @classmethod
    def of(cls, kind: Decomposed, shape: Sequence[int], sources: int, centred: bool = False) -> Wanted:
        """What a method of that kind needs of each delta of a shape [..., m, n], of so many sources."""
        if kind == "first":
            return cls(1, rounds=12)
        if kind == "parts":
            return cls(directions(kind, min(shape[-2:]), sources), rounds=None, copies=2)
        return cls(centred=centred)

    def bytes(self, shape: Sequence[int]) -> int:
        """The bytes of the factors of a delta, or of a stack of them; 0 where it is no matrix."""
        if len(shape) not in (2, 3):
            return 0
        matrices = shape[0] if len(shape) == 3 else 1
        return self.copies * matrices * factor_bytes(shape[-2:], self.top or min(shape[-2:]))


@dataclass(frozen=True)
class Factors:
    """The k largest of a delta's R = min(m, n) singular directions, on the host: u [m, k], s [k] falling, v [k, n]."""

    u: Tensor
    s: Tensor
    v: Tensor

    @classmethod
    def of(cls, delta: Tensor, top: int | None = None, rounds: int | None = _ROUNDS) -> Factors:
        """The `top` largest directions of a delta; None: all of them.

        They are sampled, if `rounds` says so, where that costs less than to find all: where R is more than twice what
        is sampled.
        """
        matrix = delta.float().cpu()
        with one_thread():
            if top is not None and rounds is not None and 2 * (top + _EXTRA) < min(matrix.shape):
                u, s, v = _sampled(matrix, top + _EXTRA, rounds)
            else:
                u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        # In memory of their own, row by row, as they are read from a file again: products depend on the layout.
        return cls(*(part.clone(memory_format=torch.contiguous_format) for part in (u[:, :top], s[:top], v[:top])))


def _sampled(matrix: Tensor, count: int, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """An approximate decomposition with `count` directions, the randomized SVD of Halko, Martinsson and Tropp (2011),
    "Finding structure with randomness". The sample is the same for equal shapes and counts."""
    rows, columns = matrix.shape
    seed = hashlib.sha256(f"{rows} {columns} {count}".encode()).digest()[:8]
    draw = torch.Generator().manual_seed(int.from_bytes(seed) >> 1)
    # Algorithm 4.4, randomized subspace iteration: q spans nearly what the largest left directions do.
    q = torch.linalg.qr(matrix @ torch.randn(columns, count, generator=draw)).Q
    for _ in range(rounds):
        q = torch.linalg.qr(matrix.T @ q).Q
        q = torch.linalg.qr(matrix @ q).Q
    # Algorithm 5.1, direct SVD: that of the small matrix q^T D gives the one of q q^T D, which is nearly D there.
    u, s, v = torch.linalg.svd(q.T @ matrix, full_matrices=False)
    return q @ u, s, v


def factor_bytes(shape: Sequence[int], directions: int) -> int:
    """The bytes of the factors of a delta in so many directions; 0 where it is no matrix."""
    return 4 * (sum(shape) + 1) * directions if len(shape) == 2 else 0


def factors(inputs: Inputs, i: int, wanted: Wanted) -> Factors:
    """The factors of delta `i`, remembered, and kept for other processes where the inputs are."""

    def made() -> Factors:
        delta = inputs.delta(i) - mean_delta(inputs) if wanted.centred else inputs.delta(i)
        return Factors.of(delta, wanted.top, wanted.rounds)

    def found() -> Factors:
        if inputs.kept is None:
            return made()
        return Factors(**inputs.kept(_origin(inputs, i, wanted), lambda: vars(made())))

    name = f"factors {wanted.top} {wanted.rounds}"
    return inputs.once(f"{name} {i}", found) if wanted.centred else inputs.of_delta(name, i, found)


def mean_delta(inputs: Inputs) -> Tensor:
    """The mean of all deltas, float32, on the device."""
    total = inputs.delta(0)
    for i in range(1, len(inputs)):
        total = total + inputs.delta(i)
    return total / len(inputs)


def are_kept(inputs: Inputs, i: int, wanted: Wanted) -> bool:
    """Whether the factors of delta `i` were computed before, maybe by another process."""
    return inputs.kept is not None and _origin(inputs, i, wanted) in inputs.kept


def _origin(inputs: Inputs, i: int, wanted: Wanted) -> str:
    """All that the bits of a delta's factors depend on, but for libraries and processor."""
    assert inputs.base is not None
    tensors = {"base": inputs.base, "source": inputs.tensors[i]}
    records = inputs.of_delta("records", i, lambda: [tensor_record(*named) for named in tensors.items()])
    how = "" if wanted.rounds == _ROUNDS else ", not sampled" if wanted.rounds is None else f", {wanted.rounds} rounds"
    if wanted.centred:
        how += ", from the mean"
        records = [*records, *inputs.once("records", lambda: [tensor_record("all", t) for t in inputs.tensors])]
    return "\n".join([f"factors {_VERSION}, top {wanted.top}, of a difference in {inputs.work}{how}", *records])
