"""Standard errors of scores from per-item scores, and confidence bounds on a share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def weighted_mean_stderr(
    values: Sequence[float],
    weights: Sequence[float] | None = None,
    clusters: Sequence[str | None] | None = None,
) -> float | None:
    """Standard error of ``sum(w v) / sum(w)``, items being drawn with their weights; None below two items.

    The delta method for a ratio of means (Cochran, Sampling Techniques, 6.3). With equal weights it is the sample
    standard deviation over sqrt(n); with bytes as weights and bits per byte as values it is the error of a corpus's
    bits per byte. Items of one cluster were drawn together: their deviations are summed before they are squared (Miller
    2024, arXiv:2411.00640, "clustered standard errors"). An item whose cluster is None is a cluster by itself.
    """
    shares = weights if weights is not None else [1.0] * len(values)
    total = math.fsum(shares)
    together = groups(clusters or [None] * len(values))
    n = len(together)
    if n < 2 or total <= 0:
        return None
    mean = math.fsum(w * v for w, v in zip(shares, values, strict=True)) / total
    spread = math.fsum(math.fsum(shares[i] * (values[i] - mean) for i in group) ** 2 for group in together)
    return math.sqrt(n / (n - 1) * spread) / total


def groups(clusters: Sequence[str | None]) -> list[list[int]]:
    """The positions of the items of each cluster, in the order of their first items; None is a cluster by itself."""
    positions: dict[object, list[int]] = {}
    for at, cluster in enumerate(clusters):
        positions.setdefault((at,) if cluster is None else cluster, []).append(at)
    return list(positions.values())


def pooled_stderr(errors: Sequence[float | None], weights: Sequence[float]) -> float | None:
    """Standard error of the weighted mean of independent scores; None where the error of one is unknown."""
    if any(error is None for error in errors):
        return None
    squares = ((w * (error or 0.0)) ** 2 for w, error in zip(weights, errors, strict=True))
    return math.sqrt(math.fsum(squares)) / math.fsum(weights)


def normal_quantile(confidence: float) -> float:
    """How many standard errors a one-sided bound at `confidence` (0.95: 1.645) lies from the estimate."""
    return NormalDist().inv_cdf(confidence)


def wilson_lower(successes: float, n: float, confidence: float) -> float:
    """One-sided lower bound of a share (Wilson, 1927): honest at 0 and 1, where the normal bound has no width. `n` may
    be an effective number of items."""
    z = normal_quantile(confidence)
    share = successes / n
    centre = share + z * z / (2 * n)
    width = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(share, max(0.0, (centre - width) / (1 + z * z / n)))


def wilson_upper(successes: float, n: float, confidence: float) -> float:
    """One-sided upper bound of a share."""
    return 1.0 - wilson_lower(n - successes, n, confidence)


def t_quantile(confidence: float, degrees: int) -> float:
    """As `normal_quantile`, for a standard error estimated with `degrees` degrees of freedom (5: 2.015)."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, confidence))


def effective_size(share: float, n: int, stderr: float | None, clusters: int, confidence: float) -> float:
    """The number of independent items that tell as much about a share as `n` items in clusters (2 or more); at most
    `n`.

    Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts".
    """
    # p (1 - p) / se^2 items have the same standard error. Where all items agree, se says nothing: n.
    size = min(float(n), share * (1 - share) / stderr**2) if stderr else float(n)
    # Fewer for an error that was estimated from few clusters: times (t_{n-1} / t_{clusters-1})^2.
    return size * (t_quantile(confidence, n - 1) / t_quantile(confidence, clusters - 1)) ** 2
