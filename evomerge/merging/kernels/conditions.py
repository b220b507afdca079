"""Elementwise conditions, in the form that is fastest where they run.

Plain torch turns bool into float, and chooses by `where`, at a tenth of the speed of comparing into float and
multiplying; compiled code is faster with bools. So a condition is bool under the compiler and 0 or 1 in a float dtype
elsewhere. What is chosen by it agrees but for the sign of zeros, which `unsigned_zero` removes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def holds(compare: Callable[..., Tensor], a: Tensor, b: Tensor | float, dtype: torch.dtype) -> Tensor:
    """The condition `compare(a, b)`, to be used on values of `dtype`. It has no gradient."""
    if torch.compiler.is_compiling():
        return compare(a, b)
    other = b.detach() if isinstance(b, Tensor) else b
    return compare(a.detach(), other, out=torch.empty(a.shape, dtype=dtype, device=a.device))


def both(a: Tensor, b: Tensor) -> Tensor:
    return a & b if a.dtype == torch.bool else a * b


def either(a: Tensor, b: Tensor) -> Tensor:
    """One of two conditions that exclude each other."""
    return a | b if a.dtype == torch.bool else a + b


def without(a: Tensor, b: Tensor) -> Tensor:
    """`a` and not `b`, where `b` implies `a`."""
    return a & ~b if a.dtype == torch.bool else a - b


def only(values: Tensor, condition: Tensor) -> Tensor:
    """The values where the condition holds, else 0."""
    return torch.where(condition, values, 0.0) if condition.dtype == torch.bool else values * condition


def number(condition: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where the condition holds, else 0."""
    return condition.to(dtype)


def unsigned_zero(values: Tensor) -> Tensor:
    """-0 becomes 0."""
    return values + 0.0
