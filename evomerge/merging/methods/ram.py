"""RAM, Reinforced Agent Merging: what one model alone has learned is not averaged away (2026,
https://arxiv.org/abs/2601.13572; as mergekit 0.1.5, merge_methods/ram.py)."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.merging.kernels.elementwise import Kernel
from evomerge.merging.kernels.inputs import Blend, Inputs


def ram(inputs: Inputs, *, epsilon: float) -> Blend:
    """base + the mean, element by element, of the deltas above `epsilon` in magnitude."""
    return _blend(inputs, "ram", epsilon, [1.0] * len(inputs))


def ramplus_tl(inputs: Inputs, *, r: float, alpha: float, epsilon: float) -> Blend:
    """RAM in which a delta's elements above `epsilon` that no other delta shares are multiplied with
    1 + r min(shared / alone, alpha), by the numbers of its elements of both kinds in this tensor."""
    number = len(inputs)
    counts = inputs.reduce(_blend(inputs, "contributions", epsilon, [1.0] * number))
    pairs = zip(counts[:number], counts[number:], strict=True)
    ratios = [shared / max(alone, epsilon) if alone else 0.0 for shared, alone in pairs]
    return _blend(inputs, "ram", epsilon, [1 + r * min(ratio, alpha) for ratio in ratios])


def _blend(inputs: Inputs, kernel: str, epsilon: float, boosts: Sequence[float]) -> Blend:
    floats = [[epsilon] * len(inputs), boosts]
    return Blend(Kernel(kernel, (("work", inputs.work),)), inputs.base, inputs.tensors, floats)
