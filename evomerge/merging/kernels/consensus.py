"""The sum of deltas that all task-arithmetic methods end in, said as a Blend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs

_ZERO = 1e-8  # a sum of weights below this does not divide (mergekit 0.1.5)
Rows = Sequence[Sequence[float]]


def combine(
    inputs: Inputs,
    weight: Sequence[float],
    *,
    elect: bool,
    normalize: bool,
    lambda_: float,
    keep: str = "all",
    rescale: Sequence[float] | None = None,
    thresholds: Rows = (),
    ints: Callable[[int], Sequence[Sequence[int]]] | None = None,
) -> Blend:
    """base + lambda * sum of weight_i rescale_i delta_i over what is kept (`kernels.deltas`).

    `normalize` divides by the sum of the weights, with `elect` by those of the deltas that agree.
    """
    assert inputs.base is not None
    factors = [w * r for w, r in zip(weight, rescale or [1.0] * len(weight), strict=True)]
    total = sum(weight)
    if normalize and not elect and abs(total) >= _ZERO:
        factors = [f / total for f in factors]
    options = {"work": inputs.work, "keep": keep, "elect": elect, "normalize": normalize and elect}
    floats = [factors, list(weight), [lambda_] * len(factors), *thresholds]
    kernel = Kernel("deltas", tuple(options.items()))
    return Blend(kernel, inputs.base, inputs.tensors, floats, ints or (lambda start: ((0,) * len(factors),)))
