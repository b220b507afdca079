"""Merges matrices by the singular directions of their deltas, and pulls gradients back to the numbers of bands.

With the decomposition D_i = U_i diag(s_i) V_i^T of each delta (Golub & Van Loan 2013, "Matrix Computations", section
2.4), a candidate is W = W_0 + sum_i U_i diag(c_i s_i) V_i^T, where the directions of a band have one number in c_i.
Then

    d loss / d c_ij = s_ij u_ij^T (d loss / d W) v_ij.

Where only the k largest directions have numbers of their own, and the rest has one number r, the rest is never
factored: the candidate is W_0 + sum_i U_i diag((c_i - r_i) s_i) V_i^T + r_i D_i over these k, and

    d loss / d r_i = <d loss / d W, D_i> - sum_j s_ij u_ij^T (d loss / d W) v_ij.

Products are summed in float64 and rounded once, by one thread: libraries for linear algebra add up in another order
with another number, and the bits that are merged to disk have to be those that were scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import spans
from evomerge.merging.kernels.factors import Wanted, factors
from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.kernels.products import one_thread
from evomerge.recipe.bands import Bands

_CHUNK = 1 << 20
"""Elements of the rows that are multiplied at a time."""


def merged(inputs: Inputs, weight: Sequence[float | Bands]) -> Tensor:
    """The merged matrix, float32, on the device of the inputs. A plain number is one for all directions."""
    total = inputs.reference.double()
    for i, value in enumerate(weight):
        if isinstance(value, Bands):
            parts = factors(inputs, i, Wanted(value.top))
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
            parts = factors(inputs, i, Wanted(value.top))
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
