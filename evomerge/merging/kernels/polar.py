"""The polar factor U V^T of a matrix U diag(s) V^T: its directions, all with the singular value 1 (Golub & Van Loan
2013, "Matrix Computations", section 9.4.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from evomerge.merging.kernels.products import inner, product

LOWEST = {torch.float32: 1e-4, torch.float64: 1e-8}
"""The least singular value, as a share of the bound of the largest, that is brought to 1. Rounding keeps what is 0 from
being 0: it must not be raised to 1 as well."""


def polar(matrix: Tensor, lowest: float | None = None) -> Tensor:
    """The polar factor of a matrix [m, n], float32 or float64, on its device. Autograd follows it.

    By the Newton-Schulz iteration X <- X (3 - X^T X) / 2, which needs products only. Each step is scaled as is best for
    singular values in [low, 1] (Chen and Chow 2014, "A stable scaling of Newton-Schulz for improving the sign function
    computation of a Hermitian matrix"). Directions without a singular value stay 0; those whose value is below
    `lowest` (None: what `LOWEST` says for the dtype) come out between 0 and 1.
    """
    rows, columns = matrix.shape
    largest = float(matrix.detach().abs().max()) if matrix.numel() else 0.0
    if not 0.0 < largest < math.inf:
        return torch.zeros_like(matrix)
    x = (matrix if rows <= columns else matrix.T) / largest
    # The norm of X X^T is at least the square of the largest singular value, and at most sqrt(m) times it.
    squares = product(x, x.T)
    bound = inner(squares, squares).sqrt()
    x, squares = x / bound.sqrt(), squares / bound
    low, unit = lowest or LOWEST[matrix.dtype], torch.finfo(matrix.dtype).eps
    while True:
        scale = math.sqrt(3 / (1 + low + low * low))
        x = 1.5 * scale * x - 0.5 * scale**3 * product(squares, x)
        low = scale * low * (3 - (scale * low) ** 2) / 2
        if 1 - low <= 4 * unit:
            return x if rows <= columns else x.T
        squares = product(x, x.T)
