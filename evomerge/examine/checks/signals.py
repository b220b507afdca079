"""The numbers by which merges of different models are compared, and which of them say how much a merge loses.

`benchmarks/check.py` measures that: the rank correlation of each signal with the loss of equal-weight merging. What it
found stands in `SIGNALS`; docs/check.md has the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from evomerge.checkpoints.samples.deltas import Deltas
from evomerge.checkpoints.samples.spectrum import Spectrum
from evomerge.checkpoints.samples.sums import Estimate

Found = Estimate | None


@dataclass(frozen=True)
class SignalKind:
    """A signal: what it is, and how it is computed from samples. `correlation`: its rank correlation with the loss of
    equal-weight merges of one family of models; None where its 95 % interval holds zero."""

    meaning: str
    correlation: float | None
    of: Callable[[Deltas, Spectrum | None], Found]


@dataclass(frozen=True)
class Signal:
    """A signal of these models, with its `correlation` (see `SignalKind`)."""

    name: str
    meaning: str
    correlation: float | None
    value: float
    error: float


def _over_sources(number: Callable[[Deltas, str], Found]) -> Callable[[Deltas, Spectrum | None], Found]:
    return lambda deltas, _: mean([number(deltas, source) for source in deltas.sources])


def _over_pairs(number: Callable[[Deltas, str, str], Found]) -> Callable[[Deltas, Spectrum | None], Found]:
    return lambda deltas, _: mean([number(deltas, *pair) for pair in combinations(deltas.sources, 2)])


def _shared(deltas: Deltas, spectrum: Spectrum | None) -> Found:
    return mean(list(spectrum.shared.values())) if spectrum is not None else None


def _rank(deltas: Deltas, spectrum: Spectrum | None) -> Found:
    return mean(list(spectrum.rank.values())) if spectrum is not None else None


def mean(values: Sequence[Found]) -> Found:
    """The mean of estimates from one sample: their errors are added, as they may be the same error."""
    found = [value for value in values if value is not None]
    if not found:
        return None
    return Estimate(math.fsum(v.value for v in found) / len(found), math.fsum(v.error for v in found) / len(found))


SIGNALS: dict[str, SignalKind] = {
    "spread": SignalKind(
        "distance of the sources from their average, relative to the base", 0.79, lambda deltas, _: deltas.spread()
    ),
    "relative size": SignalKind("|delta| / |base|, mean of the sources", None, _over_sources(Deltas.relative)),
    "mean size": SignalKind("mean |delta| of an element, mean of the sources", None, _over_sources(Deltas.mean_size)),
    "cosine with base": SignalKind(
        "cosine of source and base over matrices, mean of the sources", -0.82, _over_sources(Deltas.with_base)
    ),
    "cosine": SignalKind("of two deltas, mean of the pairs", None, _over_pairs(Deltas.cosine)),
    "sign conflict": SignalKind(
        "of the elements that two change, the share moved apart (a half by chance), mean of the pairs",
        None,
        _over_pairs(Deltas.conflict),
    ),
    "cancelled": SignalKind("share of |delta| that is lost where deltas are added", None, lambda d, _: d.cancelled()),
    "shared directions": SignalKind(
        "share of the largest directions of two deltas' blocks, mean of the pairs", None, _shared
    ),
    "effective rank": SignalKind("of the deltas' blocks, as a share of their sides", None, _rank),
}


_OF_SEVERAL = ("spread", "cancelled")


def signals(deltas: Deltas, spectrum: Spectrum | None) -> list[Signal]:
    """All signals that these models have, those that predict first. Of one source alone none predicts: with equal
    weights it is the merge."""
    several = len(deltas.sources) > 1
    found = []
    for name, kind in SIGNALS.items():
        estimate = kind.of(deltas, spectrum) if several or name not in _OF_SEVERAL else None
        if estimate is not None:
            correlation = kind.correlation if several else None
            found.append(Signal(name, kind.meaning, correlation, estimate.value, estimate.error))
    return sorted(found, key=lambda signal: signal.correlation is None)
