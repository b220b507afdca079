"""Core Space: where the changes of several LoRA adapters of one matrix are small (Panariello et al. 2025, arXiv
2509.17786, section 4).

With U the left singular vectors of [B_1 ... B_T] and V^T the right ones of [A_1; ...; A_T], the change B_i A_i is
U C_i V^T, and its core C_i = U^T B_i A_i V has as many rows and columns as all adapters have ranks. Nothing is lost. To
merge is to merge cores; the merged matrix is W + U C V^T. With the first r columns of U and V alone, cores are r x r,
and the merge has rank r: Compress-then-Merge (arXiv 2606.03723).

B A is split evenly first: with B_i A_i = P S Q^T, B_i = P S^1/2 and A_i = S^1/2 Q^T. So the cores depend on the change
alone, and not on how training has divided its size between B and A. Bases are computed in float64, on one thread of the
host, and kept in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.kernels.products import one_thread, product


@dataclass(frozen=True)
class CoreSpace:
    """The bases of one matrix's changes and the cores in them, float32, on the host: u [rows, k], v [l, columns], cores
    [sources, k, l]."""

    u: Tensor
    v: Tensor
    cores: Tensor

    @classmethod
    def of(cls, changes: Sequence[tuple[Tensor, Tensor] | None], rank: int | None = None) -> CoreSpace:
        """The space of changes B A, B [rows, r] and A [r, columns]; None: the source leaves the matrix as it is. At
        least one changes it. `rank`: so many directions are kept; None: all."""
        with one_thread():
            even = [None if change is None else _even(*change) for change in changes]
            there = [pair for pair in even if pair is not None]
            u = _left(torch.cat([b for b, _ in there], dim=1))[:, :rank]
            v = _left(torch.cat([a for _, a in there]).T)[:, :rank].T
            zero = u.new_zeros(u.shape[1], v.shape[0])
            cores = torch.stack([zero if pair is None else (u.T @ pair[0]) @ (pair[1] @ v.T) for pair in even])
        return cls(*(part.float().contiguous() for part in (u, v, cores)))

    def flat(self) -> Tensor:
        """All in one memory, to be kept as one tensor."""
        return torch.cat([self.u.reshape(-1), self.v.reshape(-1), self.cores.reshape(-1)])

    @classmethod
    def of_flat(cls, flat: Tensor, matrix: tuple[int, int], core: tuple[int, int], sources: int) -> CoreSpace:
        """The space as views of its flat memory. `matrix`, `core`: their rows and columns."""
        (rows, columns), (left, right) = matrix, core
        u, v, cores = torch.split(flat, [rows * left, right * columns, sources * left * right])
        return cls(u.view(rows, left), v.view(right, columns), cores.view(sources, left, right))

    def applied(self, weight: Tensor, core: Tensor) -> Tensor:
        """The matrix with a core's change, float32 (float64 where the matrix is), on the core's device."""
        b = product(self.u.to(core.device, core.dtype), core)
        change = product(b, self.v.to(core.device, core.dtype))
        wide = torch.promote_types(weight.dtype, torch.float32)
        return change.to(wide).add_(weight.to(core.device, wide))


def _even(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """B and A of the same change, each with the root of its singular values, float64."""
    left, right = (torch.linalg.qr(side) for side in (b.double(), a.double().T))
    p, s, q = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
    root = s.sqrt()
    return left.Q @ (p * root), (root[:, None] * q) @ right.Q.T


def _left(matrix: Tensor) -> Tensor:
    """The left singular vectors of a matrix with few columns."""
    found = torch.linalg.qr(matrix)
    vectors: Tensor = found.Q @ torch.linalg.svd(found.R, full_matrices=False).U
    return vectors
