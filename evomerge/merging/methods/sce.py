"""SCE: select, calculate, erase (Wan et al. 2024, FuseChat, https://arxiv.org/abs/2408.07990, section 3.2)."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.arithmetic import gram, wide_dtype
from evomerge.merging.kernels.deltas import combine, positions
from evomerge.merging.kernels.elementwise import Kernel, spread
from evomerge.merging.kernels.inputs import Blend, Inputs
from evomerge.merging.kernels.magnitudes import Cut, Magnitudes

_UNIFORM = 1e-6  # mean squares that sum to less do not weigh the deltas (mergekit 0.1.5)


def sce(inputs: Inputs, *, select_topk: float) -> Blend:
    """base + the weighted mean of the deltas that agree in sign with their sum, over the `select_topk` share of the
    elements that differ at all between sources: those of largest variance. A delta's weight is its mean square there.
    """
    # Step 1, select: the cut in the elements' variance (None: all elements)
    cut = None if select_topk >= 1 else _selected(inputs, select_topk)
    if cut is not None and cut.value == float("inf"):
        return combine(inputs, [0.0] * len(inputs), elect=False, normalize=False, lambda_=1.0)
    # Step 2, calculate: one weight for each delta of the tensor. Step 3, erase minority signs: in the kernel
    kernel = Kernel("sce", (("work", inputs.work), ("select", cut is not None)))
    weights, count = _weights(inputs, cut), len(inputs)
    if cut is None:
        return Blend(kernel, inputs.base, inputs.tensors, [weights])
    ints = functools.partial(positions, [[cut] * count])
    return Blend(kernel, inputs.base, inputs.tensors, [weights, [cut.value] * count], ints)


def _selected(inputs: Inputs, share: float) -> Cut:
    """The cut that keeps the `share` of largest variance, of the elements whose variance is not 0."""
    dtype, block = wide_dtype(inputs.work), functools.partial(_spread, inputs)
    variances = inputs.once("spread", lambda: Magnitudes(block, inputs.count, dtype))
    # mergekit multiplies in float32, which may round up to the next whole number
    return variances.cut(int(np.float32(variances.nonzero) * np.float32(share)), block)


def _spread(inputs: Inputs, span: slice) -> Tensor:
    return spread([inputs.delta_span(i, span) for i in range(len(inputs))])


def _weights(inputs: Inputs, cut: Cut | None) -> list[float]:
    """Mean squares of the selected deltas as shares of their sum, or equal ones where that sum is small."""
    count = max(1, inputs.count)
    squares = [row[i] / count for i, row in enumerate(inputs.gram(deltas=True))]
    if cut is not None and sum(squares) >= _UNIFORM:
        squares = [row[i] / count for i, row in enumerate(gram(functools.partial(_chosen, inputs, cut), inputs.count))]
    total = sum(squares)
    return [s / total for s in squares] if total >= _UNIFORM else [1 / len(squares)] * len(squares)


def _chosen(inputs: Inputs, cut: Cut, span: slice) -> list[Tensor]:
    """A span of all deltas, 0 where an element is not selected."""
    changes = [inputs.delta_span(i, span) for i in range(len(inputs))]
    size = spread(changes)
    index = torch.arange(span.start, span.stop, device=size.device)
    kept = (size > cut.value) | ((size == cut.value) & (index < cut.position))
    return [change * kept for change in changes]
