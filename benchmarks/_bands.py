"""Bands: each source's delta of a matrix, split by its singular values, with a coefficient for each part.

A delta is D = U diag(s) V^T (singular value decomposition, Golub & Van Loan 2013, "Matrix Computations", section 2.4).
A candidate's matrix is W = W0 + sum over the sources i of U_i diag(c_i s_i) V_i^T, where all directions of a band have
one coefficient. One band is task arithmetic with a weight for each source and tensor; with `each`, a direction has a
coefficient of its own. Tensors that are no matrices have one coefficient for each source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Count = int | Literal["each"]


class Bands:
    """Builds candidates from coefficients [size]. Matrices hold the factors of all sources side by side, so that a
    candidate costs one product for each matrix."""

    def __init__(self, base: Weights, sources: Sequence[Weights], count: Count) -> None:
        self._base = base
        self.size = 0
        self.owners: list[int] = []
        """The source of each coefficient."""
        self._factors: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # [m, R], [R], [R, n]
        self._vectors: dict[str, Tensor] = {}  # [sources, ...]
        self._places: dict[str, Tensor] = {}  # the coefficient of each of the R directions, or of each source
        for name, start in base.items():
            deltas = [source[name] - start for source in sources]
            if start.dim() == 2 and count != 1:
                self._add_matrix(name, deltas, count)
            else:
                self._vectors[name] = torch.stack(deltas)
                self._places[name] = torch.cat([self._new(source, 1) for source in range(len(sources))])

    def _add_matrix(self, name: str, deltas: Sequence[Tensor], count: Count) -> None:
        factors, places = [], []
        for source, delta in enumerate(deltas):
            u, s, v = torch.linalg.svd(delta.float(), full_matrices=False)
            bands = len(s) if count == "each" else min(count, len(s))
            # Equal numbers of directions, the largest singular values in the first band.
            place = torch.arange(len(s)) * bands // len(s)
            places.append(self._new(source, bands)[place])
            factors.append((u, s, v))
        u, s, v = (list(part) for part in zip(*factors, strict=True))
        self._factors[name] = torch.cat(u, 1), torch.cat(s), torch.cat(v)
        self._places[name] = torch.cat(places)

    def _new(self, source: int, number: int) -> Tensor:
        self.owners += [source] * number
        self.size += number
        return torch.arange(self.size - number, self.size)

    def weights(self, coefficients: Tensor) -> dict[str, Tensor]:
        """The candidate's tensors; differentiable."""
        made = {}
        for name, start in self._base.items():
            c = coefficients[self._places[name]]
            if name in self._vectors:
                made[name] = start + torch.tensordot(c, self._vectors[name], dims=1)
            else:
                u, s, v = self._factors[name]
                made[name] = start + (u * (c * s)) @ v
        return made

    def alike(self, by_source: Sequence[float]) -> Tensor:
        """The coefficients of task arithmetic with one weight for each source."""
        return torch.tensor(by_source)[torch.tensor(self.owners)]
