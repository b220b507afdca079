"""Merges matrices by the singular directions of their deltas, and pulls gradients back to the numbers of bands.

With the decomposition D_i = U_i diag(s_i) V_i^T of each delta (Golub & Van Loan 2013, "Matrix Computations", section
2.4), a candidate is W = W_0 + sum_i U_i diag(c_i s_i) V_i^T, where the directions of a band have one number in c_i.
Then

    d loss / d c_ij = s_ij u_ij^T (d loss / d W) v_ij.

Decompositions are float32, of the host, and facts of the stored tensors, remembered between candidates. Products are
summed in float64 and rounded once. Both take one thread: libraries for linear algebra add up in another order with
another number, and the bits that are merged to disk have to be those that were scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import spans
from evomerge.merging.kernels.inputs import Inputs
from evomerge.recipe.bands import Bands

_CHUNK = 1 << 20
"""Elements of the rows that are multiplied at a time."""


@dataclass(frozen=True)
class Factors:
    """A delta's singular value decomposition, on the host: u [m, R], s [R] descending, v [R, n], R = min(m, n)."""

    u: Tensor
    s: Tensor
    v: Tensor

    @classmethod
    def of(cls, delta: Tensor) -> Factors:
        with _one_thread():
            return cls(*torch.linalg.svd(delta.float().cpu(), full_matrices=False))


def factor_bytes(shape: Sequence[int]) -> int:
    """The bytes of the factors of a delta; 0 where it is no matrix."""
    return 4 * (sum(shape) + 1) * min(shape) if len(shape) == 2 else 0


def factors(inputs: Inputs, i: int) -> Factors:
    """The factors of delta `i`, remembered."""
    return inputs.of_delta("factors", i, lambda: Factors.of(inputs.delta(i)))


def merged(inputs: Inputs, weight: Sequence[float | Bands]) -> Tensor:
    """The merged matrix, float32, on the device of the inputs. A plain number is one for all directions."""
    total = inputs.reference.double()
    for i, value in enumerate(weight):
        if isinstance(value, Bands):
            parts = factors(inputs, i)
            scales = _by_direction(value, parts) * parts.s.double()
            v = parts.v.to(inputs.device).double()
            for rows in _rows(parts.u):
                u = (parts.u[rows].double() * scales).to(inputs.device)
                with _one_thread():
                    total[rows] += u @ v
        else:
            total += inputs.delta(i).double() * value
    return total.float()


def pull(inputs: Inputs, weight: Sequence[float | Bands], gradient: Tensor) -> list[Tensor]:
    """d loss / d number (float64, on the host) of each source: one for each band, or a single one."""
    pulled = []
    for i, value in enumerate(weight):
        if isinstance(value, Bands):
            parts = factors(inputs, i)
            v = parts.v.to(gradient.device, torch.float32)
            inner = torch.zeros(len(parts.s), dtype=torch.float64)
            for rows in _rows(parts.u):
                u = parts.u[rows].to(gradient.device)
                inner += (u * (gradient[rows].float() @ v.T)).sum(0, dtype=torch.float64).cpu()
            bands = torch.repeat_interleave(torch.tensor(value.sizes_in(len(parts.s))))
            slopes = torch.zeros(len(value.values), dtype=torch.float64)
            pulled.append(slopes.index_add(0, bands, inner * parts.s.double()))
        else:
            pulled.append((gradient.float() * inputs.delta(i)).sum(dtype=torch.float64).cpu().reshape(1))
    return pulled


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _by_direction(bands: Bands, parts: Factors) -> Tensor:
    """The number of each direction [R], float64."""
    sizes = torch.tensor(bands.sizes_in(len(parts.s)))
    return torch.tensor(bands.values, dtype=torch.float64).repeat_interleave(sizes)


def _rows(matrix: Tensor) -> list[slice]:
    """Runs of rows with `_CHUNK` elements at most, or one row."""
    return list(spans(matrix.shape[0], max(1, _CHUNK // max(1, matrix.shape[1]))))
