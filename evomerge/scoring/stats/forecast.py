"""Predicts candidates' scores on all items from their scores on a part.

A candidate is predicted by its difference, item by item, from a control whose scores on all items are known: what makes
an item hard for every model cancels out (difference estimator: Cochran, Sampling Techniques, 7.3). Candidates that were
scored on the same items are predicted jointly, so that comparing them is a paired test.
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
        """Draws [count, candidates] means from the predicted distribution."""
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return np.asarray(self.mean + generator.standard_normal((count, len(self.mean))) @ root.T)


@dataclass(frozen=True)
class Forecaster:
    """Predicts one slice.

    Attributes:
        item_weights: how the score is made of the items.
        features: [items, features] by which scored items represent others; None: they count by their own shares.
    """

    item_weights: ItemWeights
    features: Matrix | None

    def forecast(self, units: Matrix, control: Vector) -> Forecast:
        """Predicts candidates.

        Args:
            units: [candidates, items], NaN for an item that a candidate was not scored on.
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

    def _group(self, units: Matrix, control: Vector, scored: np.ndarray) -> tuple[Vector, Matrix]:
        """Predicts candidates that were scored on the same items, `scored`: means and covariance."""
        shares, n = self.item_weights.shares, len(scored)
        if n == len(shares):
            return units @ shares, np.zeros((len(units), len(units)))
        if n == 0:
            whole = np.full(len(units), shares @ control)
            return whole, np.zeros((len(units), len(units)))
        share = weights(self.features, shares, scored) if self.features is not None else shares[scored]
        share = share / share.sum()
        # mean = sum_all shares * control + sum_scored share * (units - control)
        differences = units - control[scored]
        means = shares @ control + differences @ share
        return means, _covariance(differences, share, n / len(shares))


def _covariance(differences: Matrix, share: Vector, part: float) -> Matrix:
    """The covariance of weighted means of differences [candidates, items]; `part` is the share of the items that were
    scored (Cochran, 2.9 and 6.3)."""
    n = len(share)
    centred = np.nan_to_num(differences - (differences @ share)[:, None]) * share
    covariance: Matrix = (1 - part) * n / max(1, n - 1) * centred @ centred.T
    whole = np.isin(differences, (-1.0, 0.0, 1.0)).all(axis=1)
    # Right or wrong answers can agree by chance on all of a few items: add one item on which they differ
    # (Agresti & Min 2005, for differences of paired shares).
    covariance += np.diag(np.where(whole, (1 - part) / (n + 2) ** 2, 0.0))
    return covariance
