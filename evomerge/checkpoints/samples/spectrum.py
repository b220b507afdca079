"""The directions of deltas: effective rank, and how much of their largest directions two deltas share.

Both are those of a block of the matrix: some of its rows and columns. A delta of low rank (an adapter's) has the same
rank in a block; of others the block's number is a lower bound, which grows with the block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS
from evomerge.checkpoints.preflight import names_of_base
from evomerge.checkpoints.samples.segments import Floats, Places, Reader, generator, is_costly, is_here
from evomerge.checkpoints.samples.sums import Estimate
from evomerge.checkpoints.structure import is_embedding, is_head

SIDE = 256
"""Rows and columns of a block, at most."""
TOP = 16
"""Directions of each delta that are compared, at most."""
_LEAST_SIDE = 16
_MATRICES = 40
_MORE, _ROUNDS = 10, 2
"""Directions that are sampled beside those asked for, and rounds of power iteration (Halko, Martinsson and Tropp 2011,
"Finding structure with randomness", algorithms 4.4 and 5.1)."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """The directions of deltas, over the blocks of some matrices.

    Attributes:
        matrices: how many blocks were read.
        rank: source -> the effective rank of its delta's blocks, as a share of their sides.
        shared: two sources -> the share of their largest directions that they share.
        chance: that share for random directions.
    """

    matrices: int
    rank: Mapping[str, Estimate]
    shared: Mapping[tuple[str, str], Estimate]
    chance: float


def spectrum(base: Checkpoint, sources: Mapping[str, Checkpoint], most: int = _MATRICES) -> Spectrum | None:
    """Reads a block of at most `most` matrices, evenly over the layers. None where no matrix can be read."""
    names = {source: names_of_base(base, checkpoint) for source, checkpoint in sources.items()}
    ranks: dict[str, list[float]] = {source: [] for source in sources}
    shared: dict[tuple[str, str], list[float]] = {pair: [] for pair in combinations(sources, 2)}
    chances: list[float] = []
    matrices = 0
    with Reader() as reader:
        for name in _chosen(base, sources, names, most):
            ours = _block(reader, base, name, name)
            blocks = {s: _block(reader, c, names[s][name][0], name) for s, c in sources.items()}
            deltas = {s: (block - ours).astype(np.float64) for s, block in blocks.items()}
            if not all(np.isfinite(delta).all() for delta in deltas.values()):
                continue
            matrices += 1
            tops = {}
            for source, delta in deltas.items():
                rank = effective_rank(delta)
                if rank is not None:
                    ranks[source].append(rank / min(delta.shape))
                    tops[source] = largest(delta, min(TOP, min(delta.shape) // 4), name)
            for one, other in shared:
                if one in tops and other in tops:
                    shared[one, other].append(overlap(tops[one], tops[other]))
                    chances.append(_chance(tops[one]))
    if not matrices:
        return None
    return Spectrum(
        matrices,
        {source: _mean(values) for source, values in ranks.items() if values},
        {pair: _mean(values) for pair, values in shared.items() if values},
        float(np.mean(chances)) if chances else math.nan,
    )


def effective_rank(delta: Matrix) -> float | None:
    """How many directions of equal size would spread the delta's energy as much: (sum s^2)^2 / sum s^4, for singular
    values s (a participation ratio). None for a delta of zeros."""
    short = delta if delta.shape[0] <= delta.shape[1] else delta.T
    gram = short @ short.T
    energy = float(np.trace(gram))
    return None if energy <= 0 else energy**2 / float((gram * gram).sum())


def largest(delta: Matrix, count: int, name: str) -> tuple[Matrix, Matrix]:
    """The `count` largest directions on both sides, [rows, count] and [columns, count], by a randomized singular value
    decomposition. `name`: seeds it."""
    sketch = generator(name, "directions").standard_normal((delta.shape[1], min(count + _MORE, *delta.shape)))
    ours, _ = np.linalg.qr(delta @ sketch)
    for _ in range(_ROUNDS):
        theirs, _ = np.linalg.qr(delta.T @ ours)
        ours, _ = np.linalg.qr(delta @ theirs)
    left, _, right = np.linalg.svd(ours.T @ delta, full_matrices=False)
    return ours @ left[:, :count], right[:count].T


def overlap(one: tuple[Matrix, Matrix], other: tuple[Matrix, Matrix]) -> float:
    """The mean squared cosine of the principal angles between two sets of directions, over both sides."""
    return float(np.mean([((a.T @ b) ** 2).sum() / a.shape[1] for a, b in zip(one, other, strict=True)]))


def _chance(directions: tuple[Matrix, Matrix]) -> float:
    """What random directions share: k of n dimensions share k / n of another k."""
    return float(np.mean([side.shape[1] / side.shape[0] for side in directions]))


def _mean(values: Sequence[float]) -> Estimate:
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(float(np.mean(values)), spread)


def _chosen(
    base: Checkpoint,
    sources: Mapping[str, Checkpoint],
    names: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]],
    most: int,
) -> list[str]:
    """Matrices of layers that all models store alike: of each module some layers, evenly."""
    groups: dict[str, list[str]] = {}
    for name, info in base.tensors.items():
        if len(info.shape) != 2 or min(info.shape) < _LEAST_SIDE or info.dtype not in FLOATS:
            continue
        if is_embedding(name) or is_head(name) or not isinstance(base.stack.place(name), int):
            continue
        own = [(base, name), *((c, names[s][name][0]) for s, c in sources.items() if name in names[s])]
        alike = all(tensor in c.tensors and c.tensors[tensor].shape == info.shape for c, tensor in own)
        if len(own) == len(sources) + 1 and alike and all(is_here(*o) and not is_costly(*o) for o in own):
            groups.setdefault("".join(c for c in base.stack.part(name) if not c.isdigit()), []).append(name)
    each = max(1, most // max(1, len(groups)))
    chosen = [group[i] for group in groups.values() for i in _evenly(len(group), each)]
    return chosen[:most]


def _evenly(count: int, wanted: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, wanted))})


def _block(reader: Reader, checkpoint: Checkpoint, name: str, seed: str) -> Floats:
    """A block of a matrix: random rows, and one run of columns."""
    height, width = checkpoint.tensors[name].shape
    rows, columns = min(height, SIDE), min(width, SIDE)
    random = generator(seed, "block")
    chosen: Places = np.sort(random.choice(height, rows, replace=False)).astype(np.int64)
    return reader.runs(checkpoint, name, chosen * width + int(random.integers(0, width - columns + 1)), columns)
