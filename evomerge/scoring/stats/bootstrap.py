"""Computes standard errors by the bootstrap: items, or clusters of items, are drawn again and again (Efron and
Tibshirani 1993, An Introduction to the Bootstrap). Each call has its own generator with a fixed seed: equal items give
equal errors, and no global generator is touched."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.scoring.stats.standard_errors import groups

SEED = 20241100640
"""The seed of every bootstrap. Recorded errors depend on it: do not change it."""
RESAMPLES = 1000
"""How many, for aggregates that are computed for all resamples at once."""
CALLS = 200
"""How many, for aggregates that call a task's function on each resample."""
_SLOW, _SLOW_CALLS = ("bleu", "chrf", "ter"), 100
_AT_ONCE = 2_000_000  # numbers in memory

Vector = NDArray[np.float64]


def counts(
    clusters: Sequence[str | None], resamples: int, strata: Sequence[object] | None = None
) -> Iterator[NDArray[np.int64]]:
    """Counts how often each item is in each resample, in blocks of shape [some resamples, items].

    Args:
        clusters: one name an item; items of one cluster are drawn together. None is a cluster by itself.
        resamples: how many are drawn.
        strata: one name an item; each stratum keeps its number of clusters. Default: one for all.
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
    """Bootstrap standard error of ``of(sum(w v) / sum(w))``. `of` takes arrays, such as the exponential of a
    perplexity. None below two clusters, or where fewer than two resamples have a weight above 0."""
    if len(groups(clusters)) < 2:
        return None
    parts = np.array([np.multiply(weights, values), weights], dtype=np.float64).T
    sums = np.concatenate([drawn @ parts for drawn in counts(clusters, RESAMPLES)])
    sums = sums[sums[:, 1] > 0]
    if len(sums) < 2:
        return None
    stderr = float(np.std(of(sums[:, 0] / sums[:, 1]), ddof=1))
    return stderr if np.isfinite(stderr) else None


def aggregate_stderr(
    aggregate: Callable[[list[Any]], float], raws: Sequence[Any], clusters: Sequence[str | None]
) -> float | None:
    """Bootstrap standard error of any function of a list of items, by calling it on `CALLS` resamples (half as many for
    BLEU and other slow ones). None below two clusters, or where the function fails on a resample."""
    if len(groups(clusters)) < 2:
        return None
    resamples = _SLOW_CALLS if getattr(aggregate, "__name__", "") in _SLOW else CALLS
    rows = (row for drawn in counts(clusters, resamples) for row in drawn)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = [float(aggregate([raws[i] for i, n in enumerate(row.tolist()) for _ in range(n)])) for row in rows]
    except Exception:
        # A task's code may fail on a sample that lacks some kind of item: the error is then unknown.
        return None
    stderr = statistics.stdev(values)
    return stderr if np.isfinite(stderr) else None
