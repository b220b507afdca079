"""Measures the tensors of a merge against those of its parents, in one pass, a tensor at a time.

The instrument is the Gram matrix of what a tensor is made of: the base's tensor b, the merge's delta y = m - b and the
sources' deltas x_i = s_i - b. Norms, cosines, and the least-squares projection of y on the x_i all follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.checkpoints.headers import FLOATS
from evomerge.checkpoints.structure import Place
from evomerge.examine.findings.models import ModelView

_MOST = 1 << 20
"""Elements of a tensor that its inner products are taken over; of a larger one, evenly spaced runs of rows."""
_RUNS = 16
_TINY = 1e-30
NEGLIGIBLE = 1e-5
"""A delta below this share of its tensor is rounding."""


@dataclass(frozen=True)
class Measured:
    """One tensor of the merge.

    Attributes:
        place: before the layers, in layer i, or after them.
        n_bad: how many values are NaN or Inf; `n_inf` those that are Inf.
        largest: the largest finite magnitude.
        parents: the parents that have the tensor, the first one as the origin b.
        gram: [b, y, x_1, ...] times itself, in float64; the order of `parents`.
        sizes: the largest finite magnitude in each parent.
        damaged: the parents that hold NaN or Inf themselves.
    """

    name: str
    shape: tuple[int, ...]
    place: Place
    n_bad: int
    n_inf: int
    largest: float
    parents: tuple[str, ...]
    gram: NDArray[np.float64]
    sizes: Mapping[str, float]
    damaged: tuple[str, ...] = ()

    @property
    def compared(self) -> bool:
        """Whether some parent has it, and all its values are finite."""
        return bool(self.parents) and not self.n_bad

    @cached_property
    def norm(self) -> float:
        """Of the merge's tensor."""
        g = self.gram
        return float(np.sqrt(max(0.0, g[0, 0] + 2 * g[0, 1] + g[1, 1])))

    @cached_property
    def norms(self) -> dict[str, float]:
        """Of the parents' tensors."""
        g, found = self.gram, {}
        for i, name in enumerate(self.parents):
            found[name] = float(np.sqrt(g[0, 0] if i == 0 else max(0.0, g[0, 0] + 2 * g[0, i + 1] + g[i + 1, i + 1])))
        return found

    @cached_property
    def cosines(self) -> dict[str, float]:
        """Of the merge's tensor with each parent's."""
        g, found = self.gram, {}
        for i, name in enumerate(self.parents):
            dot = g[0, 0] + g[0, 1]
            if i:
                dot += g[0, i + 1] + g[1, i + 1]
            found[name] = float(dot / max(_TINY, self.norm * self.norms[name]))
        return found

    @cached_property
    def likeness(self) -> float:
        """The largest cosine with a parent, or with the nearest point that the base and the sources' deltas span: the
        average of several sources that went far is like none of them."""
        g, best = self.gram, max(self.cosines.values())
        if len(self.parents) < 2:
            return best
        mix = np.concatenate([[1.0, 0.0], np.linalg.lstsq(g[2:, 2:], g[2:, 1], rcond=1e-9)[0]])
        size = float(np.sqrt(max(0.0, mix @ g @ mix)))
        return max(best, float((g[0] + g[1]) @ mix) / max(_TINY, self.norm * size))

    @property
    def delta(self) -> float:
        """The norm of y."""
        return float(np.sqrt(max(0.0, self.gram[1, 1])))

    @cached_property
    def deltas(self) -> dict[str, float]:
        """The norms of the x_i."""
        return {name: float(np.sqrt(max(0.0, self.gram[i + 1, i + 1]))) for i, name in enumerate(self.parents) if i}


@dataclass(frozen=True)
class Projection:
    """The least-squares projection of the merge's delta on its sources' deltas.

    coefficients: of each source.
    explained: the share of the delta's square that the projection has, 0 to 1.
    reach: the norm of the projection over that of the largest source delta.
    growth: the same of the whole delta.
    """

    coefficients: Mapping[str, float]
    explained: float
    reach: float
    growth: float


def project(measured: Sequence[Measured]) -> Projection | None:
    """Projects the merge's delta over some tensors together. None where no source differs from the base in them, or not
    all of them have the same parents."""
    if not measured or len({m.parents for m in measured}) > 1 or len(measured[0].parents) < 2:
        return None
    gram = sum((m.gram for m in measured), np.zeros_like(measured[0].gram))
    inner, right = gram[2:, 2:], gram[2:, 1]
    sizes = np.diag(inner)
    if gram[0, 0] <= 0 or sizes.max() <= NEGLIGIBLE**2 * gram[0, 0]:
        return None
    # Sources that are nearly alike share their coefficient: the smallest solution is taken.
    solution = np.linalg.lstsq(inner, right, rcond=1e-9)[0]
    projected = float(solution @ inner @ solution)
    total = max(_TINY, float(gram[1, 1]))
    return Projection(
        dict(zip(measured[0].parents[1:], map(float, solution), strict=True)),
        min(1.0, projected / total),
        float(np.sqrt(max(0.0, projected) / sizes.max())),
        float(np.sqrt(total / sizes.max())),
    )


def measure(
    name: str, tensor: Tensor, place: Place, parents: Sequence[tuple[ModelView, str]], factor: float = 1.0
) -> Measured:
    """Measures one tensor.

    Args:
        tensor: the merge's.
        parents: those that have it, with its name there, the base first.
        factor: what the recipe scales the tensor by; so are the parents', which it is compared with.
    """
    n_bad, n_inf, largest = _finite(tensor)
    damaged, sizes, found = [], {}, []
    for parent, inner in parents:
        other = parent.read(inner)
        other = other if factor == 1.0 else other.float() * factor
        bad, _, sizes[parent.name] = _finite(other)
        if bad:
            damaged.append(parent.name)
        else:
            found.append((parent.name, _part(other)))
    vectors = [part for _, part in found]
    gram = np.zeros((len(found) + 1, len(found) + 1))
    if found and not n_bad:
        gram = _gram(_part(tensor), vectors)
    names = tuple(name for name, _ in found)
    return Measured(name, tuple(tensor.shape), place, n_bad, n_inf, largest, names, gram, sizes, tuple(damaged))


def comparable(view: ModelView, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a model has a tensor of floats with this name and shape."""
    return view.shapes.get(name) == shape and view.dtypes[name] in FLOATS


def _finite(tensor: Tensor) -> tuple[int, int, float]:
    """How many values are NaN or Inf, how many are Inf, and the largest finite magnitude."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0, 0, float(tensor.abs().max()) if tensor.numel() else 0.0
    low, high = torch.aminmax(tensor)
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return 0, 0, max(abs(float(low)), abs(float(high)))
    finite = torch.isfinite(tensor)
    held = tensor[finite]
    largest = float(held.abs().max()) if held.numel() else 0.0
    return int((~finite).sum()), int(torch.isinf(tensor).sum()), largest


def _part(tensor: Tensor) -> Tensor:
    """The elements that inner products are taken over, flat: all of them, or runs of rows."""
    if tensor.numel() <= _MOST:
        return tensor.reshape(-1)
    rows = tensor.reshape(tensor.shape[0], -1) if tensor.dim() > 1 else tensor.reshape(-1, 1)
    length = max(1, _MOST // (_RUNS * rows.shape[1]))
    starts = np.linspace(0, rows.shape[0] - length, _RUNS).astype(int)
    return torch.cat([rows[s : s + length].reshape(-1) for s in dict.fromkeys(starts.tolist())])


def _gram(merged: Tensor, parents: Sequence[Tensor]) -> NDArray[np.float64]:
    """The Gram matrix of [b, y, x_1, ...]."""
    base = parents[0].double()
    columns = torch.stack([base, merged.double() - base, *(other.double() - base for other in parents[1:])])
    gram: NDArray[np.float64] = (columns @ columns.T).numpy()
    return gram
