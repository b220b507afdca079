"""Adam on the genes, floors by an augmented Lagrangian (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; Nocedal &
Wright 2006, "Numerical Optimization", section 17.4).

A step follows the gradients of proxy losses, smooth stand-ins for the metrics, while the multipliers follow the floors'
real margins, as scored (Cotter et al. 2019, "Two-player games for efficient non-convex constrained optimization",
arXiv:1804.06500). Every genome is a trial like any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.optimize.base import Proposal, Reason, Sequential, check
from evomerge.optimize.ordering import rank_key
from evomerge.space.vector import Encoding, Vector
from evomerge.types import Dimension, Genome, Outcome, Slopes

_FIRST, _SECOND, _TINY = 0.6, 0.999, 1e-8
"""Adam's beta1 and beta2 (the decay of both moments), and the epsilon that avoids a division by 0. The usual beta1 of
0.9 is for noisy gradients. These are exact, and a step that goes on after a floor is met has to come back."""

_PENALTY, _PACE = 50.0, 0.2
"""The weight of a shortfall of 1 (the spread of base and sources), in units of the objective's slopes, and the share of
it by which a multiplier moves in a step."""

_END = 0.1
"""The rate of the last step, as a share of the first one's."""

_TRAIL = 10
"""Curvatures are estimated from so many of the latest steps."""

_FAILURES = 12
"""The steps end after so many trials in a row that failed, or have no gradients."""


class Gradient(Sequential):
    """Takes `steps` steps from the best known genome (from the initial values where only they have a gradient). `rate`
    is the largest step as a share of each gene's range; it shrinks on the way.

    The target lies above each floor by `slack`, a share of the spread between base and sources. (The margins that are
    told take account of the noise of items.) A step that fails is taken back and tried at half its length. Early stop:
    the steps end when the merit on the items for checking (`_merit`) has not improved for `patience` steps.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        *,
        steps: int = 60,
        rate: float = 0.05,
        slack: float = 0.0,
        patience: int = 15,
        **common: Any,
    ) -> None:
        super().__init__(dimensions, seed, **common)
        self._encoding = Encoding(self.dimensions)
        self._ranges = _ranges(self._encoding)
        self._steps, self._rate, self._slack, self._patience = steps, rate, slack, patience
        self._adam = _Adam(self._encoding.size)
        self._vector = self._encoding.encode(self._beginning())
        self._safe, self._step = self._vector, np.zeros(self._encoding.size)
        self._multipliers: Vector | None = None
        self._norm: float | None = None
        self._failed, self._caution = 0, 1.0
        self._checked: list[float] = []
        self._trail: list[tuple[Vector, Vector]] = []

    @property
    def exhausted(self) -> str | None:
        if self._failed >= _FAILURES:
            return f"{_FAILURES} steps in a row could not be evaluated, or gave no slopes"
        if len(self._checked) > self._steps:
            return f"all {self._steps} steps are taken"
        if self._checked and len(self._checked) - 1 - int(np.argmax(self._checked)) >= self._patience:
            return f"the items for checking have seen nothing better in {self._patience} steps"
        return super().exhausted

    def expected_change(self, reach: float) -> list[float]:
        """For each dimension, by how much the Lagrangian changes when it moves by `reach`, a share of its range; NaN
        where a dimension never had a gradient."""
        if not self._trail:
            return [math.nan] * len(self.dimensions)
        # |g| r + h r² / 2, with the curvature h = sum of dx dg / sum of dx² over the latest steps (least squares)
        vectors, descents = (np.array([pair[i] for pair in self._trail]) for i in range(2))
        dx, dg = np.diff(vectors, axis=0), -np.diff(descents, axis=0)
        squares = (dx**2).sum(axis=0)
        curvature = np.maximum(0.0, (dx * dg).sum(axis=0) / np.where(squares > 0, squares, 1.0))
        change = np.abs(descents[-1]) * reach + curvature * reach**2 / 2
        change[~descents.any(axis=0)] = math.nan
        return [float(change[place.start]) for place in self._encoding.places]

    def _askable(self) -> int:
        return 1 - len(self._asked)

    def _beginning(self) -> Genome:
        known = [pair for pair in self.start.known if not pair[1].failed]
        if self.start.genome is not None or not known:
            return self._initial()
        return min(known, key=lambda pair: rank_key(pair[1]))[0]

    def _propose(self) -> Genome:
        return self._encoding.decode(self._vector)

    def _proposal(self, genome: Genome) -> Proposal:
        return Proposal(genome, Reason.GRADIENT_STEP, needs_gradient=True)

    def _recall(self, genome: Genome) -> Proposal:
        """Takes the genome as it is recorded: another processor may round a step otherwise."""
        check(self.dimensions, genome)
        return self._take(genome)

    def _learn(self, outcome: Outcome) -> None:
        slopes = outcome.slopes
        # 1. No gradient: the same step at half its length, from where it began.
        if outcome.failed or slopes is None or not math.isfinite(outcome.objective):
            self._failed += 1
            self._caution /= 2
            self._vector = self._encoding.encode(self._initial()) if not self._trail else self._stepped()
            return
        self._failed, self._safe, self._caution = 0, self._vector, 1.0
        # 2. The gradient of the Lagrangian. Where all weights are 0 no sign is elected, and nothing has a gradient.
        descent = self._descent(outcome, slopes)
        if not descent.any() and len(self.history) == 1:
            self._vector = self._encoding.encode(self._initial())
            return
        self._trail = [*self._trail[1 - _TRAIL :], (self._vector, descent)]
        # 3. The merit for the early stop (`exhausted`).
        self._checked.append(self._merit(*slopes.checked))
        # 4. A step of Adam: x <- clip(x + rate m / (sqrt(v) + epsilon)), with a rate that falls by a cosine.
        done = min(1.0, len(self._checked) / max(1, self._steps))
        rate = self._rate * (_END + (1 - _END) * 0.5 * (1 + math.cos(math.pi * done)))
        self._step = rate * self._adam.step(descent)
        self._vector = self._stepped()

    def _stepped(self) -> Vector:
        """The last step, from where it began, as far as caution allows."""
        vector: Vector = np.clip(self._safe + self._caution * self._step, 0.0, 1.0)
        return vector

    def _descent(self, outcome: Outcome, slopes: Slopes) -> Vector:
        """The negative gradient of the augmented Lagrangian L = -f + sum of max(0, lambda_i + c s_i)² / (2 c), in the
        unit cube, in units of the first gradient of f. f: the objective; s_i: how far floor i is missed; c: the
        penalty."""
        # -dL/dx = df/dx + sum of max(0, lambda_i + c s_i) dm_i/dx, where the gradients of the margins m_i have length 1
        objective = self._ranges * self._spread(slopes.objective)
        if self._norm is None:
            self._norm = float(np.linalg.norm(objective)) or 1.0
        descent = objective / self._norm
        short = self._slack - np.array(outcome.margins)
        if self._multipliers is None:
            self._multipliers = np.zeros(len(short))
        forces = np.maximum(0.0, self._multipliers + _PENALTY * short)
        # lambda_i <- max(0, lambda_i + pace c s_i)
        self._multipliers = np.maximum(0.0, self._multipliers + _PACE * _PENALTY * short)
        for force, margin_slopes in zip(forces, slopes.margins, strict=True):
            gradient = self._ranges * self._spread(margin_slopes)
            size = float(np.linalg.norm(gradient))
            descent = descent + force * gradient / size if size else descent
        return descent

    def _merit(self, objective: float, margins: Sequence[float]) -> float:
        """One number for the items for checking: the objective minus the penalty of each floor that is missed there."""
        assert self._norm is not None
        return objective / self._norm - _PENALTY * sum(max(0.0, -margin) for margin in margins)

    def _spread(self, slopes: Sequence[float]) -> Vector:
        """Slopes by dimension as slopes by coordinate; choices have none."""
        spread = np.zeros(self._encoding.size)
        for slope, place in zip(slopes, self._encoding.places, strict=True):
            spread[place.start] = slope
        return spread


class _Adam:
    """Adam: the direction of the next step, about 1 in each coordinate at most."""

    def __init__(self, size: int) -> None:
        self._mean, self._square, self._count = np.zeros(size), np.zeros(size), 0

    def step(self, gradient: Vector) -> Vector:
        self._count += 1
        self._mean = _FIRST * self._mean + (1 - _FIRST) * gradient
        self._square = _SECOND * self._square + (1 - _SECOND) * gradient**2
        mean = self._mean / (1 - _FIRST**self._count)
        square = self._square / (1 - _SECOND**self._count)
        direction: Vector = mean / (np.sqrt(square) + _TINY)
        return direction


def _ranges(encoding: Encoding) -> Vector:
    """d value / d coordinate; for a logarithmic dimension, at the middle of its range."""
    ranges = np.zeros(encoding.size)
    for dimension, place in zip(encoding.dimensions, encoding.places, strict=True):
        if not dimension.choices:
            low, high = dimension.low, dimension.high
            ranges[place.start] = math.sqrt(low * high) * math.log(high / low) if dimension.log else high - low
    return ranges
