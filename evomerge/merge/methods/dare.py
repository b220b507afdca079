"""DARE: drop delta elements at random and rescale the rest (Yu et al. 2024, https://arxiv.org/abs/2311.03099)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from evomerge.merge.arithmetic import delta
from evomerge.merge.consensus import combine
from evomerge.merge.masks import Draw
from evomerge.merge.sparsify import drop


def dare_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
    draw: Draw,
) -> Tensor:
    """Task arithmetic of randomly thinned deltas.

    Shapes: all tensors the same; returns that shape in float32.
    """
    deltas = _dropped(tensors, base, density, draw, rescale)
    return combine(base, deltas, weight, elect=False, normalize=normalize, lambda_=lambda_)


def dare_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Sequence[float],
    density: Sequence[float],
    normalize: bool,
    rescale: bool,
    lambda_: float,
    draw: Draw,
) -> Tensor:
    """Sign election among randomly thinned deltas.

    Shapes: all tensors the same; returns that shape in float32.
    """
    deltas = _dropped(tensors, base, density, draw, rescale)
    return combine(base, deltas, weight, elect=True, normalize=normalize, lambda_=lambda_)


def _dropped(
    tensors: Sequence[Tensor], base: Tensor, density: Sequence[float], draw: Draw, rescale: bool
) -> list[Tensor]:
    return [
        drop(delta(tensor, base), d, draw, source, rescale)
        for source, (tensor, d) in enumerate(zip(tensors, density, strict=True))
    ]
