"""Makes gates of floors once the references are measured, and holds candidates to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from evomerge.errors import InputError, suggestion
from evomerge.files.objects import FloorSpec
from evomerge.numbers import telling, usual
from evomerge.scoring.stats.standard_errors import (
    effective_size,
    groups,
    normal_quantile,
    t_quantile,
    wilson_lower,
    wilson_upper,
)
from evomerge.types import ItemScore, Scores, SliceScore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SLACK = 1e-9
"""Relative distance below a floor that still passes: rounding, as in 0.7 - 0.1 against 0.6."""


class Floored(Protocol):
    """A slice, as far as `settle` needs it: a `SliceInfo`, for example."""

    @property
    def sign(self) -> int: ...
    @property
    def floor(self) -> FloorSpec | None: ...


@dataclass(frozen=True)
class Gate:
    """One slice's floor as a number.

    Attributes:
        slice: the slice's name.
        floor: oriented (higher is better); None where the slice has none.
        text: where it comes from, in the metric's natural direction: ``0.97 of refunds 0.91``.
        sign: -1 where the metric's natural direction is lower-is-better.
    """

    slice: str
    floor: float | None
    text: str = ""
    sign: int = 1


@dataclass(frozen=True)
class Verdict:
    """What one gate says of one candidate.

    Attributes:
        slice: the slice's name.
        score: oriented.
        floor: oriented; None where the slice has none.
        passed: whether `bound` reaches the floor.
        shortfall: the distance below the floor in units of the slice's scale.
        bound: the score, or its lower confidence bound.
    """

    slice: str
    score: float
    floor: float | None
    passed: bool
    shortfall: float
    bound: float


def settle(slices: Mapping[str, Floored], references: Mapping[str, Scores]) -> dict[str, Gate]:
    """Makes the gate of every slice.

    Args:
        slices: slice name -> slice.
        references: "base" and each source's name -> its scores on the split that will be judged.

    Raises:
        InputError: a floor's reference was not measured, or a ratio of its score means nothing.
    """
    return {name: _gate(name, slice_, references) for name, slice_ in slices.items()}


def _gate(name: str, slice_: Floored, references: Mapping[str, Scores]) -> Gate:
    floor, sign = slice_.floor, slice_.sign
    if floor is None:
        return Gate(name, None, "", sign)
    if floor.of is None:
        value = floor.value if floor.value is not None else math.nan
        return Gate(name, sign * value, f"{value:.6g}", sign)
    model = reference_of(name, floor, references)
    natural = sign * references[model][name].value
    if floor.margin is not None:
        bound = natural - sign * floor.margin
        text = f"{model} {natural:.4g} {'-' if sign * floor.margin >= 0 else '+'} {abs(floor.margin):.4g}"
        return Gate(name, sign * bound, text, sign)
    keep = floor.keep if floor.keep is not None else 1.0
    text = f"{keep:.4g} of {model} {natural:.4g}" if sign > 0 else f"{model} {natural:.4g} / {keep:.4g}"
    return Gate(name, sign * _kept(natural, keep, sign, floor), text, sign)


def _kept(natural: float, keep: float, sign: int, floor: FloorSpec) -> float:
    """The natural score times `keep`; divided by it where lower is better."""
    if natural < 0:
        problem = f"keep is a ratio, and the score it refers to is negative ({natural:.4g})"
        raise InputError(problem, "give a `margin` instead", floor.where)
    if sign > 0:
        return natural * keep
    if keep == 0:
        raise InputError("keep: 0 of a metric where lower is better is no bound", "remove the floor", floor.where)
    return natural / keep


def reference_of(name: str, floor: FloorSpec, references: Mapping[str, Scores]) -> str:
    """The measured model that a slice's floor is relative to. InputError where it was not measured."""
    sources = {model: scores for model, scores in references.items() if model != "base"}
    if floor.of == "best_source" and sources:
        return max(sources, key=lambda model: sources[model][name].value)
    if floor.of in references:
        return str(floor.of)
    legal = [*references, *(["best_source"] if sources else [])]
    problem = f"the floor of slice {name!r} is relative to {floor.of!r}, which was not measured"
    raise InputError(problem, suggestion(str(floor.of), legal), floor.where)


def scales(references: Mapping[str, Scores], gates: Mapping[str, Gate]) -> dict[str, float]:
    """The unit of each slice's shortfall: the spread of the references' scores, or the floor's size if they agree."""
    return {name: _scale(name, gate, references) for name, gate in gates.items()}


def _scale(name: str, gate: Gate, references: Mapping[str, Scores]) -> float:
    values = [scores[name].value for scores in references.values() if name in scores]
    spread = max(values) - min(values) if values else 0.0
    if spread > 1e-9:
        return spread
    size = abs(gate.floor) if gate.floor is not None and math.isfinite(gate.floor) else 0.0
    return size if size > 1e-9 else 1.0


def judge(
    scores: Scores,
    gates: Mapping[str, Gate],
    scale: Mapping[str, float],
    confidence: float | None = None,
) -> list[Verdict]:
    """Holds a candidate's scores to the gates, in the gates' order. With `confidence` (such as 0.95) the one-sided
    lower confidence bound has to reach the floor."""
    return [_verdict(gate, scores[name], scale.get(name, 1.0), confidence) for name, gate in gates.items()]


def _verdict(gate: Gate, score: SliceScore, scale: float, confidence: float | None) -> Verdict:
    bound = lower_bound(score, gate.sign, confidence) if confidence is not None else score.value
    if gate.floor is None:
        return Verdict(gate.slice, score.value, None, True, 0.0, bound)
    slack = _slack(gate.floor)
    passed = bound >= gate.floor - slack
    missing = gate.floor - bound
    shortfall = 0.0 if passed else (math.inf if math.isnan(missing) else max(missing, slack) / scale)
    return Verdict(gate.slice, score.value, gate.floor, passed, shortfall, bound)


def shortfalls(bounds: NDArray[np.float64], gate: Gate, scale: float) -> NDArray[np.float64]:
    """`Verdict.shortfall` of many candidates by one gate that has a floor, from their bounds: an array of their
    shape."""
    import numpy as np

    assert gate.floor is not None
    slack = _slack(gate.floor)
    missing = gate.floor - bounds
    short = np.where(np.isnan(missing), np.inf, np.maximum(missing, slack) / scale)
    return np.where(bounds >= gate.floor - slack, 0.0, short)


def _slack(floor: float) -> float:
    return _SLACK * max(1.0, abs(floor)) if math.isfinite(floor) else 0.0


def lower_bound(score: SliceScore, sign: int, confidence: float) -> float:
    """The oriented value that the true score exceeds with probability `confidence`.

    Where every item is 0 or 1 and the score is their mean, it is Wilson's bound (with clusters, for the effective
    number of items). Else it follows from the standard error (with clusters, by Student's t for their number). Where
    the error is unknown, it is the score itself; `Suite.build` refuses such a slice a floor with confidence.
    """
    bounds = _bounds(score, sign, confidence)
    if bounds is None:
        return score.value
    return bounds[0] if sign > 0 else -bounds[1]


def interval(score: SliceScore, sign: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """The two-sided interval (low, high) of a score in its metric's own direction, from two bounds like `lower_bound`;
    None where the error is unknown."""
    return _bounds(score, sign, (1 + confidence) / 2)


def _bounds(score: SliceScore, sign: int, confidence: float) -> tuple[float, float] | None:
    """One-sided bounds from either side, in the metric's own direction."""
    natural, n = sign * score.value, len(score.items)
    clusters = _clusters(score.items)
    if _is_share(score.items, natural):
        if clusters == 1:
            return 0.0, 1.0  # a single cluster bounds nothing
        size = effective_size(natural, n, score.stderr, clusters, confidence) if clusters else n
        return wilson_lower(natural * size, size, confidence), wilson_upper(natural * size, size, confidence)
    if score.stderr is None:
        return None
    quantile = t_quantile(confidence, clusters - 1) if clusters > 1 else normal_quantile(confidence)
    return natural - quantile * score.stderr, natural + quantile * score.stderr


def _clusters(items: Sequence[ItemScore]) -> int:
    """The number of clusters, where some items have one; else 0."""
    named = [item.cluster for item in items]
    return len(groups(named)) if any(cluster is not None for cluster in named) else 0


def _is_share(items: Sequence[ItemScore], value: float) -> bool:
    """Whether a score is the share of items that are 1, the others being 0."""
    if not items or any(item.score not in (0.0, 1.0) or item.weight != 1.0 for item in items):
        return False
    return math.isclose(math.fsum(item.score or 0.0 for item in items) / len(items), value, abs_tol=1e-9)


def feasible(verdicts: Iterable[Verdict]) -> bool:
    """Whether every gate passed."""
    return all(verdict.passed for verdict in verdicts)


def shortfall(verdicts: Sequence[Verdict]) -> float:
    """The total normalised distance below the floors: 0 if and only if the candidate is feasible."""
    return math.fsum(verdict.shortfall for verdict in verdicts)


def floor_decimals(floor: float | None, sign: int, verdicts: Iterable[Verdict], least: int | None = None) -> int:
    """The decimals, at least `least` (default: the usual ones), with which each score is on the right side of its
    oriented floor. A score that was held to it by a confidence bound, not by itself, may be on either."""
    known = list(verdicts)
    if least is None:
        least = usual([sign * v.score for v in known] or ([] if floor is None else [sign * floor]))
    scores = [(sign * v.score, v.passed) for v in known if v.bound == v.score]
    return telling(None if floor is None else sign * floor, scores, sign, least)
