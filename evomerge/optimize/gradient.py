"""Adam on the genes, floors by an augmented Lagrangian (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1; Nocedal &
Wright 2006, "Numerical Optimization", section 17.4).

A step goes down the slopes of smooth stand-ins for the metrics, while multipliers follow the floors' real margins, as
scored: who steers by a proxy is still held to what counts (Cotter et al. 2019, "Two-player games for efficient
non-convex constrained optimization", arXiv:1804.06500). Every genome is a trial like any other.
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
"""Adam's decay of the first and the second moment, and what keeps it from dividing by 0. The usual 0.9 is for noisy
slopes; these are exact, and what goes on moving after a floor is met has to come back."""

_PENALTY, _PACE = 50.0, 0.2
"""The weight of a shortfall of 1 (the spread of base and sources), in units of the objective's slopes, and the share of
it by which a multiplier moves in a step."""

_END = 0.1
"""What is left of the rate at the last step."""

_TRAIL = 10
"""The latest steps, by which curvatures are judged."""

_FAILURES = 12
"""So many trials in a row that fail, or have no slopes, end it."""


class Gradient(Sequential):
    """From the best genome that is known (or the initial values, where the objective has a slope only there), `steps`
    steps of at most `rate`, a share of each gene's range, which shrinks on the way.

    It aims above each floor by `slack`, a share of the spread between base and sources, because floors are judged on
    other items again. It ends when the items for checking have seen no better in `patience` steps. A step that fails is
    taken back and tried at half its length.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        *,
        steps: int = 60,
        rate: float = 0.05,
        slack: float = 0.01,
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

    def promise(self, reach: float) -> list[float]:
        """For each dimension, how much the Lagrangian changes with this share of its range by its slope and its
        curvature, which is judged by the differences between the latest slopes; NaN for those that never had a slope.
        """
        if not self._trail:
            return [math.nan] * len(self.dimensions)
        vectors, slopes = (np.array([pair[i] for pair in self._trail]) for i in range(2))
        moved, turned = np.diff(vectors, axis=0), -np.diff(slopes, axis=0)
        squares = (moved**2).sum(axis=0)
        curvature = np.maximum(0.0, (moved * turned).sum(axis=0) / np.where(squares > 0, squares, 1.0))
        found = np.abs(slopes[-1]) * reach + curvature * reach**2 / 2
        found[~slopes.any(axis=0)] = math.nan
        return [float(found[place.start]) for place in self._encoding.places]

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
        if outcome.failed or slopes is None or not math.isfinite(outcome.objective):
            self._failed += 1
            self._caution /= 2
            self._vector = self._encoding.encode(self._initial()) if not self._trail else self._stepped()
            return
        self._failed, self._safe, self._caution = 0, self._vector, 1.0
        downhill = self._lagrangian(outcome, slopes)
        if not downhill.any() and len(self.history) == 1:
            # Where all weights are 0 no sign is elected: nothing has a slope there.
            self._vector = self._encoding.encode(self._initial())
            return
        self._trail = [*self._trail[1 - _TRAIL :], (self._vector, downhill)]
        self._checked.append(self._merit(*slopes.checked))
        done = min(1.0, len(self._checked) / max(1, self._steps))
        rate = self._rate * (_END + (1 - _END) * 0.5 * (1 + math.cos(math.pi * done)))
        self._step = rate * self._adam.step(downhill)
        self._vector = self._stepped()

    def _stepped(self) -> Vector:
        """The last step, from where it began, as far as caution allows."""
        found: Vector = np.clip(self._safe + self._caution * self._step, 0.0, 1.0)
        return found

    def _lagrangian(self, outcome: Outcome, slopes: Slopes) -> Vector:
        """The gradient, downhill, of minus the objective plus sum of max(0, multiplier + penalty * shortfall)²
        / (2 penalty), in the unit cube, in units of the objective's first slopes."""
        objective = self._ranges * self._spread(slopes.objective)
        if self._norm is None:
            self._norm = float(np.linalg.norm(objective)) or 1.0
        descent = objective / self._norm
        short = self._slack - np.array(outcome.margins)
        if self._multipliers is None:
            self._multipliers = np.zeros(len(short))
        forces = np.maximum(0.0, self._multipliers + _PENALTY * short)
        self._multipliers = np.maximum(0.0, self._multipliers + _PACE * _PENALTY * short)
        for force, own in zip(forces, slopes.margins, strict=True):
            slope = self._ranges * self._spread(own)
            size = float(np.linalg.norm(slope))
            descent = descent + force * slope / size if size else descent
        return descent

    def _merit(self, objective: float, margins: Sequence[float]) -> float:
        """One number for the items for checking, on which the floors are noisy as well."""
        assert self._norm is not None
        return objective / self._norm - _PENALTY * sum(max(0.0, -margin) for margin in margins)

    def _spread(self, slopes: Sequence[float]) -> Vector:
        """Slopes by dimension as ones by coordinate; choices have none."""
        found = np.zeros(self._encoding.size)
        for slope, place in zip(slopes, self._encoding.places, strict=True):
            found[place.start] = slope
        return found


class _Adam:
    """The direction of the next step, about 1 in each coordinate at most."""

    def __init__(self, size: int) -> None:
        self._mean, self._square, self._count = np.zeros(size), np.zeros(size), 0

    def step(self, slopes: Vector) -> Vector:
        self._count += 1
        self._mean = _FIRST * self._mean + (1 - _FIRST) * slopes
        self._square = _SECOND * self._square + (1 - _SECOND) * slopes**2
        mean = self._mean / (1 - _FIRST**self._count)
        square = self._square / (1 - _SECOND**self._count)
        direction: Vector = mean / (np.sqrt(square) + _TINY)
        return direction


def _ranges(encoding: Encoding) -> Vector:
    """d value / d coordinate; of a logarithmic one at the middle of its range."""
    found = np.zeros(encoding.size)
    for dimension, place in zip(encoding.dimensions, encoding.places, strict=True):
        if not dimension.choices:
            low, high = dimension.low, dimension.high
            found[place.start] = math.sqrt(low * high) * math.log(high / low) if dimension.log else high - low
    return found
