"""Keeping the elements whose magnitude has one of certain ranks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from evomerge.merging.kernels.inputs import Inputs
from evomerge.merging.kernels.magnitudes import Cut

_LAST = (1 << 31) - 1


def window(inputs: Inputs, keep: Sequence[int], drop: Sequence[int] | None = None) -> dict[str, Any]:
    """What `consensus.combine` is told to keep of each delta the elements from rank `drop` (default: the first) to rank
    `keep`, counted from the largest magnitude."""
    if drop is None or not any(drop):
        if all(k >= inputs.count for k in keep):
            return {"keep": "all"}
        return _kept("largest", [_cuts(inputs, keep)])
    return _kept("between", [_cuts(inputs, keep), _cuts(inputs, drop)])


def _cuts(inputs: Inputs, counts: Sequence[int]) -> list[Cut]:
    return [inputs.cut(i, count) for i, count in enumerate(counts)]


def _kept(kind: str, rows: Sequence[Sequence[Cut]]) -> dict[str, Any]:
    thresholds = [[cut.value for cut in row] for row in rows]
    return {"keep": kind, "thresholds": thresholds, "ints": functools.partial(positions, rows)}


def positions(rows: Sequence[Sequence[Cut]], start: int) -> list[list[int]]:
    """Where the cuts' positions lie in the piece that starts at an element."""
    return [[min(max(cut.position - start, 0), _LAST) for cut in row] for row in rows]
