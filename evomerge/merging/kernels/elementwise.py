"""Elementwise kernels: they merge every element of a candidate by itself, in one pass.

A kernel takes flat chunks of the stored tensors and a few numbers, and returns the merged chunk in float32. It runs as
plain torch, chunk by chunk, or compiled into one loop (`runner.py`), with equal bits: nothing in it depends on an
element's neighbours. Values that change between candidates come in as tensors, so that nothing is compiled again. Of
several outputs at once (`rows.py`) a kernel takes chunks [outputs, elements], and each number as [outputs, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import fixed_point, rounded, wide
from evomerge.merging.kernels.masks import lowbias32, mix


@dataclass(frozen=True)
class Kernel:
    """One of this module's functions, with the options that are compiled into it."""

    function: str
    options: tuple[tuple[str, Any], ...] = ()

    def bound(self) -> Callable[..., Tensor]:
        """``(base, tensors, floats, ints) -> merged``."""
        return functools.partial(globals()[self.function], **dict(self.options))


def weighted(base: Tensor | None, tensors: Sequence[Tensor], floats: Tensor, ints: Tensor) -> Tensor:
    """sum of floats[0, i] * theta_i."""
    return _sum([wide(tensor) * floats[0, i] for i, tensor in enumerate(tensors)])


def deltas(
    base: Tensor,
    tensors: Sequence[Tensor],
    floats: Tensor,
    ints: Tensor,
    *,
    work: torch.dtype,
    keep: str,
    elect: bool,
    normalize: bool,
) -> Tensor:
    """base + lambda * sum of factor_i delta_i over the elements that are kept and, if `elect`, agree in sign.

    `keep`: "all"; "largest" (above a threshold); "between" (and below another); "drawn" (by a hash).
    floats, one row each: factor, weight, lambda (in column 0), then for "largest" the threshold, for "between" both.
    ints: for "largest" the first index at which an element that equals the threshold is dropped, for "between" both;
    for "drawn" the index of the first element, two keys, and the largest hash that is kept.
    """
    reference = wide(base)
    index = torch.arange(base.shape[-1], dtype=torch.int32, device=base.device)
    scaled = []
    for i, tensor in enumerate(tensors):
        change = _change(tensor, base, work)
        factored = change * floats[0, i]
        if keep != "all":
            factored = only(factored, _kept(keep, change, index, floats, ints, i))
        scaled.append(factored)
    return consensus(reference, scaled, [floats[1, i] for i in range(len(scaled))], floats[2, 0], elect, normalize)


def consensus(
    reference: Tensor,
    scaled: Sequence[Tensor],
    weights: Sequence[Tensor],
    lambda_: Tensor,
    elect: bool,
    normalize: bool,
) -> Tensor:
    """reference + lambda * sum of the scaled deltas (Ilharco et al. 2023, equation 1).

    `elect`: TIES (Yadav et al. 2023, section 4; the deltas are trimmed already, step 1). Per element, only the deltas
    with the elected sign take part. `normalize`, then: divide by the sum of the weights that take part.
    """
    merged = _sum(scaled)
    if elect:
        # Step 2, elect: gamma = sgn(sum of weight_i delta_i), + for a sum of 0
        agreeing = _agreeing(scaled, merged)
        # Step 3, disjoint merge: the sum over A = {i : sgn(delta_i) = gamma}, divided by the sum of weight_i over A
        merged = _sum([only(delta, agrees) for delta, agrees in zip(scaled, agreeing, strict=True)])
        if normalize:
            divisor = _sum([only(weight, agrees) for agrees, weight in zip(agreeing, weights, strict=True)])
            nobody = holds(torch.eq, divisor, 0.0, divisor.dtype)
            merged = merged / (divisor + number(nobody, divisor.dtype))
    return reference + unsigned_zero(merged * lambda_)


def _agreeing(changes: Sequence[Tensor], total: Tensor) -> list[Tensor]:
    """The conditions that each delta has the sign of their sum, + where that is 0."""
    if torch.compiler.is_compiling():
        sign = torch.where(total >= 0.0, 1.0, -1.0)
    else:
        # A sum of -0 is one of zeros alone, which agree with no sign
        sign = torch.copysign(torch.ones((), dtype=total.dtype, device=total.device), total.detach())
    return [holds(torch.gt, change * sign, 0.0, total.dtype) for change in changes]


def masked(
    base: Tensor,
    tensors: Sequence[Tensor],
    floats: Tensor,
    ints: Tensor,
    *,
    work: torch.dtype,
    elect: bool,
    normalize: bool,
) -> Tensor:
    """`deltas` of the elements that masks keep. tensors: the models', then as many masks (uint8, 0 or 1)."""
    reference, count = wide(base), len(tensors) // 2
    scaled = []
    for i in range(count):
        factored = _change(tensors[i], base, work) * floats[0, i]
        scaled.append(factored * tensors[count + i])
    return consensus(reference, scaled, [floats[1, i] for i in range(count)], floats[2, 0], elect, normalize)


def stitched(
    base: Tensor, tensors: Sequence[Tensor], floats: Tensor, ints: Tensor, *, work: torch.dtype, keep: str
) -> Tensor:
    """`deltas` without election, divided by the number of deltas that keep an element."""
    reference = wide(base)
    index = torch.arange(base.shape[-1], dtype=torch.int32, device=base.device)
    scaled, keepers = [], []
    for i, tensor in enumerate(tensors):
        change = _change(tensor, base, work)
        factored = change * floats[0, i]
        if keep != "all":
            kept = _kept(keep, change, index, floats, ints, i)
            factored = only(factored, kept)
            keepers.append(number(kept, change.dtype))
        scaled.append(factored)
    divisor = _sum(keepers).clamp_min(1.0) if keepers else float(len(scaled))
    return reference + unsigned_zero(_sum(scaled) / divisor * floats[2, 0])


def needed(base: Tensor, tensors: Sequence[Tensor], floats: Tensor, ints: Tensor, *, work: torch.dtype) -> Tensor:
    """base + lambda * D, D the sum of the weighted deltas, where enough of these are above a share of all the others.

    floats, one row each: weight, lambda (in column 0), that share, and how many are enough (in column 0).
    """
    reference = wide(base)
    scaled = [_change(tensor, base, work) * floats[0, i] for i, tensor in enumerate(tensors)]
    merged, dtype = _sum(scaled), reference.dtype
    votes = []
    for i, change in enumerate(scaled):
        others = (merged - change).abs() * floats[2, i]
        votes.append(number(holds(torch.gt, change.abs(), others, dtype), dtype))
    kept = holds(torch.ge, _sum(votes), floats[3, 0], dtype)
    return reference + unsigned_zero(only(merged, kept) * floats[1, 0])


def sce(
    base: Tensor, tensors: Sequence[Tensor], floats: Tensor, ints: Tensor, *, work: torch.dtype, select: bool
) -> Tensor:
    """base + sum of weight_i delta_i / max(sum of weight_i, 1e-6), both over the deltas whose sign is that of the
    unweighted sum.

    floats[0]: the weights. `select`: only elements whose `spread` is above floats[1, 0], or equal to it and before
    ints[0, 0].
    """
    reference = wide(base)
    changes = [_change(tensor, base, work) for tensor in tensors]
    # Select: the elements of largest variance
    if select:
        index = torch.arange(base.shape[-1], dtype=torch.int32, device=base.device)
        kept = _largest(spread(changes), index, floats[1, 0], ints[0, 0])
        changes = [only(change, kept) for change in changes]
    # Erase: deltas against the sign of the sum; then the mean by the weights that are left (from `methods.sce`)
    weights = [only(floats[0, i], agrees) for i, agrees in enumerate(_agreeing(changes, _sum(changes)))]
    merged = _sum([change * weight for change, weight in zip(changes, weights, strict=True)])
    return reference + unsigned_zero(merged / _sum(weights).clamp_min(1e-6))


def spread(changes: Sequence[Tensor]) -> Tensor:
    """The variance of each element across n sources, times n^2: the sum over all pairs of their squared difference."""
    pairs = [a - b for i, a in enumerate(changes) for b in changes[:i]]
    return _sum([pair * pair for pair in pairs]) if pairs else torch.zeros_like(changes[0])


def ram(base: Tensor, tensors: Sequence[Tensor], floats: Tensor, ints: Tensor, *, work: torch.dtype) -> Tensor:
    """base + the mean of the deltas that contribute; one that contributes alone is multiplied with its floats[1].

    floats[0, 0]: the magnitude above which a delta contributes.
    """
    reference = wide(base)
    changes, contributing, several, alone = _contributions(base, tensors, floats[0, 0], work)
    total = _sum(contributing).clamp_min(1.0)
    parts = []
    for i, (change, contributes) in enumerate(zip(changes, contributing, strict=True)):
        parts.append(change * contributes / total * (several + alone * floats[1, i]))
    return reference + _sum(parts)


def contributions(
    base: Tensor, tensors: Sequence[Tensor], floats: Tensor, ints: Tensor, *, work: torch.dtype
) -> Tensor:
    """Counts the elements of each delta that contribute with other deltas, then the elements that contribute alone.

    Returns two whole numbers a source.

    floats as in `ram`.
    """
    _, contributing, several, alone = _contributions(base, tensors, floats[0, 0], work)
    return torch.stack([(c * kind).sum(dtype=torch.float64) for kind in (several, alone) for c in contributing])


def _contributions(
    base: Tensor, tensors: Sequence[Tensor], epsilon: Tensor, work: torch.dtype
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """The deltas; then per element, as 0 or 1: whether each contributes, whether several do, whether one alone does."""
    changes = [_change(tensor, base, work) for tensor in tensors]
    dtype = changes[0].dtype
    contributing = [number(holds(torch.gt, change.abs(), epsilon, dtype), dtype) for change in changes]
    total = _sum(contributing)
    several, alone = (number(holds(compare, total, 1.0, dtype), dtype) for compare in (torch.gt, torch.eq))
    return changes, contributing, several, alone


def drawn_norms(base: Tensor, tensors: Sequence[Tensor], floats: Tensor, ints: Tensor, *, work: torch.dtype) -> Tensor:
    """The L1 norm of the elements that each delta keeps by hash, in fixed point: one whole number a source.

    floats[0]: the units of `fixed_point`; ints as in `deltas`.
    """
    index = torch.arange(base.shape[-1], dtype=torch.int32, device=base.device)
    norms = []
    for i, tensor in enumerate(tensors):
        sizes = fixed_point(_change(tensor, base, work).abs(), floats[0, i])
        norms.append(only(sizes, _drawn(index, ints, i, sizes.dtype)).sum(dtype=torch.float64))
    return torch.stack(norms)


def nearswap(base: Tensor, tensors: Sequence[Tensor], floats: Tensor, ints: Tensor) -> Tensor:
    """w * theta + (1 - w) * base with w = min(t / max(|base - theta|, 1e-6), 1), t = floats[0, 0]."""
    near, far = wide(base), wide(tensors[0])
    share = (floats[0, 0] / (near - far).abs().clamp_min(1e-6)).clamp(0.0, 1.0)
    return share * far + (1.0 - share) * near


def _change(tensor: Tensor, base: Tensor, work: torch.dtype) -> Tensor:
    """tensor - base, rounded to `work`, then widened."""
    if work.itemsize == 2 and tensor.dtype == base.dtype == work and not torch.compiler.is_compiling():
        return wide(tensor - base)  # which rounds likewise, in half of plain torch's steps
    return rounded(wide(tensor) - wide(base), work)


def _kept(keep: str, change: Tensor, index: Tensor, floats: Tensor, ints: Tensor, i: int) -> Tensor:
    """The condition that an element of delta `i` is kept."""
    if keep == "drawn":
        return _drawn(index, ints, i, change.dtype)
    size = change.abs()
    kept = _largest(size, index, floats[3, i], ints[0, i])
    return without(kept, _largest(size, index, floats[4, i], ints[1, i])) if keep == "between" else kept


def _largest(size: Tensor, index: Tensor, threshold: Tensor, position: Tensor) -> Tensor:
    """The condition that a magnitude is above the threshold, or equal to it at an index before the position."""
    if not (torch.compiler.is_compiling() or position.dim() or position.is_cuda):
        # In plain torch: most chunks lie on one side of the position
        if position <= 0:
            return holds(torch.gt, size, threshold, size.dtype)
        if position >= index.numel():
            return holds(torch.ge, size, threshold, size.dtype)
    equal = holds(torch.eq, size, threshold, size.dtype)
    before = holds(torch.lt, index, position, size.dtype)
    return either(holds(torch.gt, size, threshold, size.dtype), both(equal, before))


def _drawn(index: Tensor, ints: Tensor, i: int, dtype: torch.dtype) -> Tensor:
    """The condition that source `i` keeps an element: hash(number, keys) <= limit (`masks`)."""
    return holds(torch.le, mix(index + ints[0, i], ints[1, i], ints[2, i]), ints[3, i], dtype)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of the tensors, added up in their order."""
    result = tensors[0]
    for tensor in tensors[1:]:
        result = result + tensor
    return result


def fingerprint(
    base: None, tensors: Sequence[Tensor], floats: Tensor, ints: Tensor, *, exponents: tuple[int, ...]
) -> Tensor:
    """Two sums of hashes of a tensor's 32-bit words and their places, and the number of words that hold a NaN or Inf.

    Returns int64 of 3 numbers, the same in any order of the words. `exponents`: for each value in a word, the bits
    that are all set in NaN and Inf. ints[0, 0]: the first word's number.
    """
    words = tensors[0]
    places = torch.arange(words.shape[-1], dtype=torch.int32, device=words.device) + ints[0, 0]
    first = mix(places, 0x3C6EF372, words)
    second = lowbias32(first)
    broken = torch.zeros_like(words, dtype=torch.bool if torch.compiler.is_compiling() else words.dtype)
    for bits in exponents:
        broken = broken | holds(torch.eq, words & bits, bits, words.dtype)
    return torch.stack([part.sum(dim=-1, dtype=torch.int64) for part in (first, second, broken)])


# Conditions, in the form that is fastest where they run: bool under the compiler; else 0 or 1 in a float dtype, because
# plain torch turns bool into float, and chooses by `where`, at a tenth of the speed of comparing into float and
# multiplying. Both forms choose the same values but for the sign of zeros, which `unsigned_zero` removes.


def holds(compare: Callable[..., Tensor], a: Tensor, b: Tensor | float, dtype: torch.dtype) -> Tensor:
    """The condition `compare(a, b)`, to be used on values of `dtype`. It has no gradient."""
    if torch.compiler.is_compiling():
        return compare(a, b)
    other = b.detach() if isinstance(b, Tensor) else b
    if isinstance(other, Tensor) and other.dim():
        return compare(a.detach(), other).to(dtype)
    return compare(a.detach(), other, out=torch.empty(a.shape, dtype=dtype, device=a.device))


def both(a: Tensor, b: Tensor) -> Tensor:
    """Two conditions together."""
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
