"""The bootstrap: items, or clusters of items that belong together, are drawn again and again (Efron and Tibshirani
1993, An Introduction to the Bootstrap). Every draw comes from a generator of its own with a fixed seed, so that equal
items give equal errors, and no global generator is touched."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.scoring.stats.standard_errors import groups

SEED = 20241100640
"""Of every bootstrap. It is part of what a recorded error means: do not change it."""
RESAMPLES = 1000
"""For aggregates that are computed for all resamples at once."""
CALLS = 200
"""For aggregates that are computed by calling a task's function on each resample."""
_SLOW, _SLOW_CALLS = ("bleu", "chrf", "ter"), 100
_AT_ONCE = 2_000_000  # numbers in memory

Vector = NDArray[np.float64]


def counts(
    clusters: Sequence[str | None], resamples: int, strata: Sequence[object] | None = None
) -> Iterator[NDArray[np.int64]]:
    """How often each item stands in each resample, in blocks of shape [some resamples, items].

    Items of one cluster are drawn together. Each of the `strata` (one name an item; default: one for all) keeps its
    number of clusters.
    """
    n, generator = len(clusters), np.random.default_rng(SEED)
    names = strata if strata is not None else [None] * n
    layers = [
        [[places[i] for i in group] for group in groups([clusters[at] for at in places])]
        for places in ([at for at in range(n) if names[at] == name] for name in dict.fromkeys(names))
    ]
    block = max(1, _AT_ONCE // max(1, n))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = np.zeros((size, n), dtype=np.int64)
        for layer in layers:
            owner = np.repeat(np.arange(len(layer)), [len(group) for group in layer])
            drawn[:, np.concatenate(layer).astype(np.int64)] = _multinomial(generator, size, len(layer))[:, owner]
        yield drawn


def _multinomial(generator: np.random.Generator, size: int, n: int) -> NDArray[np.int64]:
    """`n` draws from `n`, counted, `size` times: [size, n]."""
    picks = generator.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    return np.bincount(picks.ravel(), minlength=size * n).reshape(size, n)


def mean_stderr(
    values: Sequence[float],
    weights: Sequence[float],
    clusters: Sequence[str | None],
    of: Callable[[Vector], Vector],
) -> float | None:
    """Bootstrap standard error of ``of(sum(w v) / sum(w))``, `of` being applied to arrays, such as the exponential of a
    perplexity. None below two clusters, or where no two resamples have a weight above 0."""
    if len(groups(clusters)) < 2:
        return None
    parts = np.array([np.multiply(weights, values), weights], dtype=np.float64).T
    sums = np.concatenate([drawn @ parts for drawn in counts(clusters, RESAMPLES)])
    sums = sums[sums[:, 1] > 0]
    if len(sums) < 2:
        return None
    found = float(np.std(of(sums[:, 0] / sums[:, 1]), ddof=1))
    return found if np.isfinite(found) else None


def aggregate_stderr(
    aggregate: Callable[[list[Any]], float], raws: Sequence[Any], clusters: Sequence[str | None]
) -> float | None:
    """Bootstrap standard error of any function of a list of items, by calling it on `CALLS` resamples (half as many
    for BLEU and its like, which take long). None below two clusters, or where the function fails on a resample."""
    if len(groups(clusters)) < 2:
        return None
    resamples = _SLOW_CALLS if getattr(aggregate, "__name__", "") in _SLOW else CALLS
    rows = (row for drawn in counts(clusters, resamples) for row in drawn)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [float(aggregate([raws[i] for i, n in enumerate(row.tolist()) for _ in range(n)])) for row in rows]
    except Exception:
        # A task's own code may not take a sample without some kind of item; then nothing is known.
        return None
    error = statistics.stdev(found)
    return error if np.isfinite(error) else None
