"""Writes numbers for people: as short as they can be without being read wrongly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from evomerge.types import is_size

Interval = tuple[float, float] | None

_DIGITS = 4
"""Digits of a short score."""
_MOST = 12
"""Decimals that no number goes beyond."""


def number(value: float | None, decimals: int | None = None) -> str:
    """Writes a number, a size as a whole one; "-" where there is none."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    decimals = usual([value]) if decimals is None else decimals
    return f"{value:,.0f}" if decimals == 0 else f"{value:.{decimals}f}"


def usual(values: Iterable[float]) -> int:
    """Returns the decimals of scores of one slice: none where all are sizes."""
    known = list(values)
    return 0 if known and all(map(is_size, known)) else _DIGITS


def span(interval: Interval, decimals: int = _DIGITS) -> str:
    """Writes an interval of a score: ``0.944–0.996``."""
    if interval is None:
        return "-"
    if interval[0] == interval[1]:
        return "exact"
    low, high = (number(end, decimals) for end in interval)
    return f"{low} to {high}" if low.startswith("-") else f"{low}–{high}"


def behind(value: float, interval: Interval, decimals: int | None = None) -> str:
    """Writes the interval that follows a score, short: `` (0.94–1.00)``."""
    if interval is None or interval[0] == interval[1]:
        return ""
    decimals = short(value) if decimals is None else decimals
    fewer = max(0, decimals - 1)
    narrow = number(interval[0], fewer) == number(interval[1], fewer)
    return f" ({span(interval, decimals if narrow else fewer)})"


def short(value: float) -> int:
    """Returns the number of decimals with which about four digits are shown."""
    return max(0, _DIGITS - len(f"{abs(value):.0f}")) if math.isfinite(value) else 0


def telling(floor: float | None, scores: Sequence[tuple[float, bool]], sign: int, least: int) -> int:
    """Returns the fewest decimals, at least `least`, with which no score seems to be on the other side of the floor.

    Args:
        floor: in the metric's direction, as the scores.
        scores: each with whether it reaches the floor.
        sign: -1 where lower is better.
    """
    if floor is None or not math.isfinite(floor):
        return least
    for decimals in range(least, _MOST):
        limit = round(floor, decimals)
        shown = ((round(value, decimals), passed) for value, passed in scores if math.isfinite(value))
        if all((sign * value >= sign * limit) == passed for value, passed in shown):
            return decimals
    return _MOST


def shortest(values: Iterable[float]) -> int:
    """Returns the decimals of a column in which each of these numbers has about four digits, or more."""
    known = list(values)
    return 0 if known and usual(known) == 0 else max(map(short, known), default=_DIGITS - 1)


def clock(seconds: float) -> str:
    """Writes a duration: ``0:03:10`` in hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
