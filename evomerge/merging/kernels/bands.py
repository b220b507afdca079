"""Merges matrices by the singular directions of their deltas, and pulls gradients back to the numbers of bands.

With the decomposition D_i = U_i diag(s_i) V_i^T of each delta (Golub & Van Loan 2013, "Matrix Computations", section
2.4), a candidate is W = W_0 + sum_i U_i diag(c_i s_i) V_i^T, where the directions of a band have one number in c_i.
Then

    d loss / d c_ij = s_ij u_ij^T (d loss / d W) v_ij.

Where only the k largest directions have numbers of their own, and the rest has one number r, the rest is never
factored: the candidate is W_0 + sum_i U_i diag((c_i - r_i) s_i) V_i^T + r_i D_i over these k, and

    d loss / d r_i = <d loss / d W, D_i> - sum_j s_ij u_ij^T (d loss / d W) v_ij.

Decompositions are float32, of the host, and facts of the stored tensors, remembered between candidates. Products are
summed in float64 and rounded once. Both take one thread: libraries for linear algebra add up in another order with
another number, and the bits that are merged to disk have to be those that were scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import spans
from evomerge.merging.kernels.digest import tensor_record
from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.kernels.products import one_thread
from evomerge.recipe.bands import Bands

_CHUNK = 1 << 20
"""Elements of the rows that are multiplied at a time."""

_EXTRA, _ROUNDS = 10, 2
"""Directions that are sampled beyond those that are kept, and rounds of the power iteration."""

_VERSION = 1
"""Goes up when `Factors.of` gives other bits."""


@dataclass(frozen=True)
class Factors:
    """The k largest of a delta's R = min(m, n) singular directions, on the host: u [m, k], s [k] falling, v [k, n]."""

    u: Tensor
    s: Tensor
    v: Tensor

    @classmethod
    def of(cls, delta: Tensor, top: int | None = None) -> Factors:
        """The `top` largest directions of a delta; None: all of them.

        They are sampled where that costs less than to find all: where R is more than twice what is sampled.
        """
        matrix = delta.float().cpu()
        with one_thread():
            if top is not None and 2 * (top + _EXTRA) < min(matrix.shape):
                u, s, v = _sampled(matrix, top + _EXTRA)
            else:
                u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        # In memory of their own, row by row, as they are read from a file again: products depend on the layout.
        return cls(*(part.clone(memory_format=torch.contiguous_format) for part in (u[:, :top], s[:top], v[:top])))


def _sampled(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """An approximate decomposition with `count` directions, the randomized SVD of Halko, Martinsson and Tropp (2011),
    "Finding structure with randomness". The sample is the same for equal shapes and counts."""
    rows, columns = matrix.shape
    seed = hashlib.sha256(f"{rows} {columns} {count}".encode()).digest()[:8]
    draw = torch.Generator().manual_seed(int.from_bytes(seed) >> 1)
    # Algorithm 4.4, randomized subspace iteration: q spans nearly what the largest left directions do.
    q = torch.linalg.qr(matrix @ torch.randn(columns, count, generator=draw)).Q
    for _ in range(_ROUNDS):
        q = torch.linalg.qr(matrix.T @ q).Q
        q = torch.linalg.qr(matrix @ q).Q
    # Algorithm 5.1, direct SVD: that of the small matrix q^T D gives the one of q q^T D, which is nearly D there.
    u, s, v = torch.linalg.svd(q.T @ matrix, full_matrices=False)
    return q @ u, s, v


def factor_bytes(shape: Sequence[int], directions: int) -> int:
    """The bytes of the factors of a delta in so many directions; 0 where it is no matrix."""
    return 4 * (sum(shape) + 1) * directions if len(shape) == 2 else 0


def factors(inputs: Inputs, i: int, top: int | None = None) -> Factors:
    """The factors of delta `i`, remembered, and kept for other processes where the inputs are."""

    def found() -> Factors:
        if inputs.kept is None:
            return Factors.of(inputs.delta(i), top)
        parts = inputs.kept(_origin(inputs, i, top), lambda: vars(Factors.of(inputs.delta(i), top)))
        return Factors(**parts)

    return inputs.of_delta(f"factors {top}", i, found)


def are_kept(inputs: Inputs, i: int, top: int | None) -> bool:
    """Whether the factors of delta `i` were computed before, maybe by another process."""
    return inputs.kept is not None and _origin(inputs, i, top) in inputs.kept


def _origin(inputs: Inputs, i: int, top: int | None) -> str:
    """All that the bits of a delta's factors depend on, but for libraries and processor."""
    assert inputs.base is not None
    tensors = {"base": inputs.base, "source": inputs.tensors[i]}
    pair = inputs.of_delta("records", i, lambda: [tensor_record(*named) for named in tensors.items()])
    return "\n".join([f"factors {_VERSION}, top {top}, of a difference in {inputs.work}", *pair])


def merged(inputs: Inputs, weight: Sequence[float | Bands]) -> Tensor:
    """The merged matrix, float32, on the device of the inputs. A plain number is one for all directions."""
    total = inputs.reference.double()
    for i, value in enumerate(weight):
        if isinstance(value, Bands):
            parts = factors(inputs, i, value.top)
            numbers = torch.tensor(value.values, dtype=torch.float64)[_band(value, inputs)] - value.rest
            scales, v = numbers * parts.s.double(), parts.v.to(inputs.device).double()
            delta = None if value.top is None else inputs.delta(i)
            for rows in _rows(inputs):
                u = (parts.u[rows].double() * scales).to(inputs.device)
                with one_thread():
                    total[rows] += u @ v
                if delta is not None:
                    total[rows] += delta[rows].double() * value.rest
        else:
            total += inputs.delta(i).double() * value
    return total.float()


def pull(inputs: Inputs, weight: Sequence[float | Bands], gradient: Tensor) -> list[Tensor]:
    """d loss / d number (float64, on the host) of each source: one for each band, or a single one."""
    pulled = []
    for i, value in enumerate(weight):
        if isinstance(value, Bands):
            parts = factors(inputs, i, value.top)
            v = parts.v.to(gradient.device, torch.float32)
            inner = torch.zeros(len(parts.s), dtype=torch.float64)
            for rows in _rows(inputs):
                u = parts.u[rows].to(gradient.device)
                inner += (u * (gradient[rows].float() @ v.T)).sum(0, dtype=torch.float64).cpu()
            inner *= parts.s.double()
            slopes = torch.zeros(len(value.values), dtype=torch.float64).index_add(0, _band(value, inputs), inner)
            if value.top is not None:
                slopes[-1] = _inner(gradient, inputs, i) - inner.sum()
            pulled.append(slopes)
        else:
            pulled.append(_inner(gradient, inputs, i).reshape(1))
    return pulled


def _inner(gradient: Tensor, inputs: Inputs, i: int) -> Tensor:
    """<gradient, delta i>, float64, on the host."""
    return (gradient.float() * inputs.delta(i)).sum(dtype=torch.float64).cpu()


def _band(bands: Bands, inputs: Inputs) -> Tensor:
    """The band that each factored direction belongs to."""
    sizes = torch.tensor(bands.sizes_in(min(inputs.shape)))
    return torch.repeat_interleave(sizes)[: bands.top]


def _rows(inputs: Inputs) -> list[slice]:
    """Runs of rows with `_CHUNK` elements at most, or one row."""
    rows, columns = inputs.shape
    return list(spans(rows, max(1, _CHUNK // max(1, columns))))
