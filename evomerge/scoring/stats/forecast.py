"""Predicts candidates' scores on all items from their scores on a part.

A candidate is predicted by its difference, item by item, from a control whose scores on all items are known: what makes
an item hard for every model cancels out (difference estimator: Cochran, Sampling Techniques, 7.3). The ways in which
earlier candidates differed from the control explain a part of the difference (regression estimator: the same, 7.1, with
several variables; Särndal, Swensson & Wretman 1992, "Model Assisted Survey Sampling", section 6.4). Candidates that
were scored on the same items are predicted jointly, so that comparing them is a paired test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.scoring.stats.aggregation import ItemWeights
from evomerge.scoring.stats.anchors import Clusters, Matrix, Strata, Vector, clusters


@dataclass(frozen=True)
class Forecast:
    """One slice's predicted means of units: [candidates] and their covariance [candidates, candidates]."""

    mean: Vector
    covariance: Matrix

    def draws(self, count: int, generator: np.random.Generator) -> Matrix:
        """Draws [count, candidates] means from the predicted distribution."""
        values, vectors = np.linalg.eigh(self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        drawn = self.mean + generator.standard_normal((count, len(self.mean))) @ root.T
        return np.where(np.diag(self.covariance) > 0, drawn, self.mean)  # what is known is the same in each draw

    def shrunk(self) -> Vector:
        """The means drawn towards each other as far as they differ by chance only: [candidates].

        The empirical Bayes estimate (Efron & Morris 1973, section 2, with the variances that the items show): each mean
        m_c becomes ``m + t^2 / (t^2 + v_c) (m_c - m)``, with v_c the variance of its distance from their average m,
        and t^2 what these distances vary by beyond that. A candidate is pruned as its items look bad, so that on
        average its true score is better than they say; this takes that out.
        """
        n = len(self.mean)
        if n < _FEWEST:
            return self.mean
        centre = np.eye(n) - 1 / n
        noise = np.maximum(np.diag(centre @ self.covariance @ centre), 0.0)
        middle = self.mean.mean()
        apart = self.mean - middle
        signal = max(0.0, float(apart @ apart - noise.sum()) / (n - 1))
        kept = np.where(noise > 0, signal / np.maximum(signal + noise, 1e-300), 1.0)
        return np.asarray(middle + kept * apart)


_FEWEST = 4
"""Fewer means say nothing of how much they vary."""

_COMPONENTS = 4
"""So many ways of differing explain most of what candidates differ by."""

_RIDGE = 1e-3
"""The ridge of a regression on them, as a share of what they vary by."""


@dataclass(frozen=True)
class Forecaster:
    """Predicts one slice.

    Attributes:
        item_weights: how the score is made of the items.
        strata: by which scored items represent others; None: they count by their own shares.
    """

    item_weights: ItemWeights
    strata: Strata | None

    def components(self, others: Matrix, control: Vector, scored: np.ndarray) -> Matrix | None:
        """[k, items], the main ways in which other candidates differ from the control; None where these predict no
        better for it, or are few: those of one half of the others are tried on the other half.

        Args:
            others: [others, items], their units, all known.
            control: [items], of the control.
            scored: [items], whether it is one of those from which candidates are to be predicted.
        """
        apart = (others - control)[np.any(others != control, axis=1)]
        if len(apart) < 2 * (_COMPONENTS + 1):
            return None
        tried, known = _principal(apart[::2]), control + apart[1::2]
        means, units = known @ self.item_weights.shares, np.where(scored, known, np.nan)
        plain, explained = (self.forecast(units, control, c).mean - means for c in (None, tried))
        return _principal(apart) if explained @ explained < plain @ plain else None

    def forecast(self, units: Matrix, control: Vector, components: Matrix | None = None) -> Forecast:
        """Predicts candidates.

        Args:
            units: [candidates, items], NaN for an item that a candidate was not scored on.
            control: [items], the units of the control, all known.
            components: [k, items], ways in which candidates may differ from the control.
        """
        count = len(units)
        mean, covariance = np.empty(count), np.zeros((count, count))
        seen = ~np.isnan(units)
        for pattern in np.unique(seen, axis=0):
            group = np.flatnonzero((seen == pattern).all(axis=1))
            means, spread = self._group(units[group][:, pattern], control, np.flatnonzero(pattern), components)
            mean[group], covariance[np.ix_(group, group)] = means, spread
        return Forecast(mean, covariance)

    def _group(
        self, units: Matrix, control: Vector, scored: np.ndarray, components: Matrix | None
    ) -> tuple[Vector, Matrix]:
        """Predicts candidates that were scored on the same items, `scored`: means and covariance."""
        shares, n = self.item_weights.shares, len(scored)
        if n == len(shares):
            return units @ shares, np.zeros((len(units), len(units)))
        if n == 0:
            whole = np.full(len(units), shares @ control)
            return whole, np.zeros((len(units), len(units)))
        if self.strata is not None:
            known = clusters(self.strata, shares, scored)
        else:
            known = Clusters(np.zeros(n, np.int64), shares[scored] / shares[scored].sum(), np.full(n, len(shares)))
        # mean = sum_all shares * control + sum_scored share * (units - control)
        differences = units - control[scored]
        means = shares @ control + differences @ known.shares
        covariance = _covariance(differences, known, n / len(shares))
        k = 0 if components is None else len(components)
        if components is None or n < 2 * k:
            return means, covariance
        # With components the same of what they leave: + sum_all shares * fitted - sum_scored share * fitted
        fitted = _fitted(differences, components, scored)
        left = differences - fitted[:, scored]
        means = means + fitted @ shares - fitted[:, scored] @ known.shares
        return means, _covariance(left, known, n / len(shares)) * (n / (n - k))


def _principal(apart: Matrix) -> Matrix:
    """[k, items], the principal components of differences [others, items], as large as they usually are."""
    _, sizes, directions = np.linalg.svd(apart, full_matrices=False)
    return np.asarray(directions[:_COMPONENTS] * sizes[:_COMPONENTS, None] / np.sqrt(len(apart)))


def _fitted(differences: Matrix, components: Matrix, scored: np.ndarray) -> Matrix:
    """[candidates, items], what components explain of candidates' differences on the scored items, on all: least
    squares with a ridge."""
    at = components[:, scored]
    gram = at @ at.T
    ridge = _RIDGE * np.trace(gram) + 1e-300
    coefficients = np.linalg.solve(gram + ridge * np.eye(len(gram)), at @ differences.T)
    return np.asarray(coefficients.T @ components)


def _covariance(differences: Matrix, known: Clusters, part: float) -> Matrix:
    """The covariance of weighted means of differences [candidates, items]; `part` is the share of the items that were
    scored.

    That of a stratified mean: in each cluster by the scatter around its mean (Cochran, 5.9), with the finite population
    correction (2.9). Clusters with one scored item show no scatter of their own: they are taken together, around the
    mean of all of them (5A.12, collapsed strata).
    """
    n, share = len(known.of), known.shares
    alone = np.bincount(known.of)[known.of] == 1
    if alone.sum() == 1:  # there is nothing to take it together with: all items around their mean
        alone = np.ones(n, dtype=bool)
    _, group = np.unique(np.where(alone, -1, known.of), return_inverse=True)
    inside = np.eye(group.max() + 1)[group]  # [scored, groups]
    members = inside.sum(axis=0)
    # How many items a group stands for: those of its cluster, or of all its clusters.
    sizes = (inside * np.where(alone, known.sizes, known.sizes / members[group])[:, None]).sum(axis=0)
    open_ = np.full(len(members), 1 - part) if alone.all() else np.maximum(0.0, 1 - members / sizes)
    means = (differences * share) @ inside / (share @ inside)
    centred = np.nan_to_num(differences - means[:, group]) * share
    scale = open_ * members / np.maximum(1, members - 1)
    covariance: Matrix = (centred * scale[group]) @ centred.T
    whole = np.isin(differences, (-1.0, 0.0, 1.0)).all(axis=1)
    # Right or wrong answers can agree by chance on all of a few items: add one item on which they differ
    # (Agresti & Min 2005, for differences of paired shares), of the weight that items have.
    doubt = (1 - part) * float(share @ share) * n / (n + 2) ** 2
    covariance += np.diag(np.where(whole, doubt, 0.0))
    return covariance
