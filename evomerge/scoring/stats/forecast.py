"""What a part of the items says of candidates' scores on all of them.

A candidate is predicted by its difference, item by item, from a control whose scores on all items are known: what
makes an item hard for every model cancels out (difference estimator: Cochran, Sampling Techniques, 7.3). Candidates
that were seen on the same items are predicted jointly, so that to compare them is a paired test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.scoring.stats.aggregation import ItemWeights
from evomerge.scoring.stats.anchors import Matrix, Vector, weights


@dataclass(frozen=True)
class Forecast:
    """One slice's predicted means of units: [candidates] and their covariance [candidates, candidates]."""

    mean: Vector
    covariance: Matrix

    def draws(self, count: int, generator: np.random.Generator) -> Matrix:
        """[count, candidates] means that are as likely as the items seen leave them."""
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return np.asarray(self.mean + generator.standard_normal((count, len(self.mean))) @ root.T)


@dataclass(frozen=True)
class Forecaster:
    """Predicts one slice.

    Attributes:
        item_weights: how its score is made of its items'.
        features: [items, features] by which items stand for others; None: those seen count by their own shares.
    """

    item_weights: ItemWeights
    features: Matrix | None

    def forecast(self, units: Matrix, control: Vector) -> Forecast:
        """Predict candidates.

        Args:
            units: [candidates, items], NaN for an item that a candidate was not seen on.
            control: [items], the units of the control, all known.
        """
        count = len(units)
        mean, covariance = np.empty(count), np.zeros((count, count))
        seen = ~np.isnan(units)
        for pattern in np.unique(seen, axis=0):
            group = np.flatnonzero((seen == pattern).all(axis=1))
            means, spread = self._group(units[group][:, pattern], control, np.flatnonzero(pattern))
            mean[group], covariance[np.ix_(group, group)] = means, spread
        return Forecast(mean, covariance)

    def _group(self, units: Matrix, control: Vector, chosen: np.ndarray) -> tuple[Vector, Matrix]:
        shares, n = self.item_weights.shares, len(chosen)
        if n == len(shares):
            return units @ shares, np.zeros((len(units), len(units)))
        if n == 0:
            whole = np.full(len(units), shares @ control)
            return whole, np.zeros((len(units), len(units)))
        share = weights(self.features, shares, chosen) if self.features is not None else shares[chosen]
        share = share / share.sum()
        differences = units - control[chosen]
        means = shares @ control + differences @ share
        return means, _covariance(differences, share, n / len(shares))


def _covariance(differences: Matrix, share: Vector, part: float) -> Matrix:
    """Of weighted means of differences [candidates, items], `part` of the items being seen (Cochran, 2.9 and 6.3)."""
    n = len(share)
    centred = np.nan_to_num(differences - (differences @ share)[:, None]) * share
    covariance: Matrix = (1 - part) * n / max(1, n - 1) * centred @ centred.T
    whole = np.isin(differences, (-1.0, 0.0, 1.0)).all(axis=1)
    # Answers that are right or wrong can agree by chance on all of a few items: one more that did not is supposed
    # (Agresti & Min 2005, for differences of paired shares).
    covariance += np.diag(np.where(whole, (1 - part) / (n + 2) ** 2, 0.0))
    return covariance
