"""What was measured for a method, how far two merges agree, and the table of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.table import Table
from torch import Tensor

from evomerge.registry import METHODS

FASTER = {"ties": 100.0, "dare_ties": 30.0, "linear": 4.0, "slerp": 4.0}
"""How many times faster than mergekit a method is meant to be."""
COPIES = {"ties": 3.0, "linear": 3.0, "slerp": 3.0}
"""How many times longer than the copy it may take."""
_TRIMMED = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce", "arcee_fusion")
"""Methods that keep the largest elements. Of deltas of bfloat16 weights, one in ten may equal the threshold, and which
of the equal ones mergekit keeps is up to its sort."""


@dataclass(frozen=True)
class Agreement:
    """How far a merge agrees with mergekit's.

    Attributes:
        close: share of elements within two bfloat16 units in the last place; None for random masks.
        largest: the largest difference.
        moved: mean |merge - base| here over that of mergekit's merge.
        least: the share that has to be close.
    """

    close: float | None
    largest: float
    moved: float
    least: float

    @property
    def holds(self) -> bool:
        return abs(self.moved - 1) <= 0.05 and (self.close is None or self.close >= self.least)

    def __str__(self) -> str:
        shown = "random masks" if self.close is None else f"{self.close:.2%} close, most {self.largest:.0e}"
        return f"{shown}, moved {self.moved:.3f}x"


@dataclass
class Row:
    """One method: seconds of each candidate, and memory in bytes. `bytes` is the size of one model.

    `first`, `warm` and `ours` are evomerge's, in this order; `theirs` begins with mergekit's first candidate.
    """

    method: str
    models: int
    varies: bool
    bytes: int
    first: float = 0.0
    warm: list[float] = field(default_factory=list)
    waited: float = 0.0
    ours: list[float] = field(default_factory=list)
    digests: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    theirs_failed: str = ""
    load: float = 0.0
    peak: int = 0
    device_peak: int = 0
    theirs_peak: int = 0
    agreement: Agreement | None = None

    @property
    def steady(self) -> float:
        return median(self.ours)

    @property
    def copy(self) -> float:
        return median(self.copies)

    @property
    def their_steady(self) -> float | None:
        return median(self.theirs[1:] or self.theirs) if self.theirs else None

    @property
    def faster(self) -> float | None:
        return self.their_steady / self.steady if self.their_steady else None

    @property
    def copies_long(self) -> float:
        return self.steady / self.copy

    @property
    def bandwidth(self) -> float:
        """Bytes in a second: every model read once, one written."""
        return (self.models + 1) * self.bytes / self.steady

    @property
    def copy_bandwidth(self) -> float:
        return 2 * self.models * self.bytes / self.copy

    def summary(self) -> str:
        theirs = self.theirs_failed or f"mergekit {_seconds(self.their_steady)} s"
        return f"{_seconds(self.steady)} s, copy {_seconds(self.copy)} s, {theirs}"

    def data(self) -> dict[str, Any]:
        names = ("steady", "copy", "their_steady", "faster", "copies_long", "bandwidth", "copy_bandwidth")
        return asdict(self) | {name: getattr(self, name) for name in names}


def compare(
    method: str, base: Mapping[str, Tensor], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> Agreement:
    """How far two merges of the same models agree, over the tensors that both have; all in bfloat16.

    A unit in the last place is that of the largest of both results and the base.
    """
    near = total = 0
    largest, moves = 0.0, [0.0, 0.0]
    for name, x, y, z in ((n, ours[n].float(), theirs[n].float(), base[n].float()) for n in ours):
        if x.shape != y.shape:
            raise ValueError(f"{name}: {list(x.shape)} here, {list(y.shape)} in mergekit")
        apart = (x - y).abs()
        scale = x.abs().maximum(y.abs()).maximum(z.abs())
        near += int((apart <= scale * 2.0**-7).sum())
        total += apart.numel()
        largest = max(largest, float(apart.max()))
        moves = [moves[0] + float((x - z).abs().sum()), moves[1] + float((y - z).abs().sum())]
    close = None if METHODS[method].stochastic else near / total
    least = 0.9 if method in _TRIMMED else 0.99
    return Agreement(close, largest, moves[0] / moves[1] if moves[1] else 1.0, least)


def table(rows: list[Row], mergekit: bool) -> Table:
    """One line for each method; targets are met or missed in words."""
    found = Table(title="One candidate, seconds (median; first candidate beside it)", title_justify="left")
    found.add_column("method", no_wrap=True)
    for name in ("candidate", "first", "warm-up (n)", "load", "copy", "x copy", "GB/s (copy)", "peak GB"):
        found.add_column(name, justify="right")
    if mergekit:
        for name in ("mergekit (n)", "faster", "its peak"):
            found.add_column(name, justify="right")
        found.add_column("agreement")
    for row in rows:
        cells = [
            row.method + ("" if row.varies else " (no gene)"),
            _seconds(row.steady),
            _seconds(row.first),
            f"{sum(row.warm):.1f} ({len(row.warm)}) + {row.waited:.1f}",
            f"{row.load:.1f}",
            f"{_seconds(row.copy)} ({row.models})",
            _judged(row.copies_long, COPIES.get(row.method), most=True),
            f"{row.bandwidth / 1e9:.1f} ({row.copy_bandwidth / 1e9:.1f})",
            f"{row.peak / 1e9:.2f}" + (f" + {row.device_peak / 1e9:.2f} GPU" if row.device_peak else ""),
        ]
        found.add_row(*cells, *(_mergekit_cells(row) if mergekit else []))
    return found


def _mergekit_cells(row: Row) -> list[str]:
    if row.faster is None:
        return ["-", "-", "-", f"mergekit: {row.theirs_failed}"]
    failed = f"mergekit, later: {row.theirs_failed}" if row.theirs_failed else str(row.agreement)
    return [
        f"{_seconds(row.their_steady)} ({max(1, len(row.theirs) - 1)})",
        _judged(row.faster, FASTER.get(row.method), most=False),
        f"{row.theirs_peak / 1e9:.2f}",
        failed,
    ]


def _judged(ratio: float, target: float | None, most: bool) -> str:
    """A ratio, and whether its target is met."""
    shown = f"{ratio:.1f}x"
    if target is None:
        return shown
    met = ratio <= target if most else ratio >= target
    return f"{shown} {'met' if met else 'MISSED'} ({'<=' if most else '>='} {target:g}x)"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
