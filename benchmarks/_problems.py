"""Searches with a known optimum that behave like merges: weights for each source and layer, several slices, floors.

Slice k is best where its own source has weights around 0.75 (the last slice: where no source has much), and every
other source disturbs it a little. Layers differ in importance, smoothly from one to the next; weights of one source add
up, and sources interfere. Its score is 1 / (1 + q) with q a quadratic form that is 1 at the base. About half of the
slices have floors above what the best mean would leave them, so that floors are active at the optimum.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from evomerge.space.reference_genomes import ReferenceKind, reference_genomes
from evomerge.types import Dimension, Genome, Outcome

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


class Problem:
    """`noise` is the standard deviation of each observed score; the references' scores span about 0.6."""

    def __init__(self, sources: int, layers: int, seed: int, noise: float = 0.0) -> None:
        self.noise, self.size = noise, sources * layers
        self._sources, self._layers = sources, layers
        self._generator = np.random.default_rng([77, sources, layers, seed])
        self.sources = tuple(f"source{i}" for i in range(sources))
        places = [(source, str(layer)) for source in self.sources for layer in range(layers)]
        self.dimensions = tuple(
            Dimension(f"weight[{s},{n}]", 0.0, 1.0, 0.5, gene="weight", place={"sources": s, "layers": n})
            for s, n in places
        )
        self._slices = [self._slice(own) for own in range(sources + 1)]
        self._floors: Vector = np.full(sources + 1, -math.inf)
        free, _ = self._solved()
        assert free is not None
        self._raise_floors(free)
        self.references = reference_genomes(self.dimensions, self.sources, ("task_arithmetic",), {})
        self.scored = {
            name: r.genome for name, r in self.references.items() if r.kind is not ReferenceKind.EQUAL_WEIGHTS
        }
        scores = np.array([self.scores(genome) for genome in self.scored.values()])
        self._scale = scores.max(axis=0) - scores.min(axis=0)

    def scores(self, genome: Genome) -> Vector:
        """Of every slice, without noise."""
        return self._scores(np.array([float(genome[d.key]) for d in self.dimensions]))

    def observe(self, genome: Genome, generator: np.random.Generator) -> Outcome:
        noise = self.noise * generator.standard_normal(len(self._slices))
        return self._outcome(self.scores(genome) + noise)

    def truth(self, genome: Genome) -> Outcome:
        return self._outcome(self.scores(genome))

    def _outcome(self, scores: Vector) -> Outcome:
        held = np.isfinite(self._floors)
        margins = ((scores - self._floors) / self._scale)[held]
        shortfall = float(np.maximum(0.0, -margins).sum())
        feasible, mean = bool((margins >= 0).all()), float(scores.mean())
        return Outcome(False, feasible, mean, shortfall, tuple(margins.tolist()), tuple(scores.tolist()))

    # How it is made.

    def _smooth(self) -> Vector:
        drawn = self._generator.standard_normal(self._layers + 4)
        values: Vector = np.convolve(drawn, [0.2, 0.6, 1.0, 0.6, 0.2], "valid")
        return values / values.std()

    def _slice(self, own: int) -> tuple[Matrix, Vector]:
        """A and c of q(w) = |A (w - c)|²."""
        rows = [
            0.75 + 0.15 * self._smooth() if s == own else 0.05 + 0.08 * self._smooth() for s in range(self._sources)
        ]
        general = own == self._sources
        best = np.concatenate(rows) - (0.1 if general else 0.0)
        importance = np.exp(0.6 * self._smooth())
        shares = [1.0 if s == own else math.exp(0.5 * self._generator.standard_normal() - 0.7)
                  for s in range(self._sources)]  # fmt: skip
        single = np.sqrt(np.outer(shares, importance).ravel())
        mixed = self._generator.standard_normal((max(4, self.size // 4), self.size)) * single / math.sqrt(self.size)
        form = np.concatenate([np.diag(single), 0.8 * mixed, 1.5 * single[None] / math.sqrt(self.size)])
        origin = np.full(self.size, 0.5) if general else np.zeros(self.size)
        return form / np.linalg.norm(form @ (origin - best)), best

    def _scores(self, weights: Vector) -> Vector:
        return np.array([1.0 / (1.0 + float(((form @ (weights - best)) ** 2).sum())) for form, best in self._slices])

    def _slopes(self, weights: Vector) -> Matrix:
        found = []
        for form, best in self._slices:
            error = form @ (weights - best)
            found.append(-2.0 * form.T @ error / (1.0 + float((error**2).sum())) ** 2)
        return np.array(found)

    def _raise_floors(self, free: Vector) -> None:
        """Floors that the best mean misses, as far above it as leaves something feasible."""
        start = self._scores(free)
        order = self._generator.permutation(len(self._slices))[: max(1, len(self._slices) // 2)]
        for share in (0.25, 0.15, 0.08, 0.03, 0.0):
            for at in order:
                most = max(self._scores(np.clip(self._slices[at][1], 0.0, 1.0))[at], start[at])
                self._floors[at] = start[at] + share * (most - start[at])
            weights, self.best = self._solved()
            if weights is not None:
                return

    def _solved(self) -> tuple[Vector | None, float]:
        """The best weights, and their mean score; the best of three starts."""
        held = np.isfinite(self._floors)
        bound = {
            "type": "ineq",
            "fun": lambda w: self._scores(w)[held] - self._floors[held],
            "jac": lambda w: self._slopes(w)[held],
        }
        generator, found, most = np.random.default_rng(0), None, -math.inf
        for _ in range(3):
            solved = minimize(
                lambda w: -self._scores(w).mean(),
                0.5 * generator.random(self.size),
                jac=lambda w: -self._slopes(w).mean(axis=0),
                bounds=[(0.0, 1.0)] * self.size,
                constraints=[bound] if held.any() else [],
                method="SLSQP",
                options={"maxiter": 300},
            )
            if (self._scores(solved.x)[held] >= self._floors[held] - 1e-6).all() and -solved.fun > most:
                found, most = np.clip(solved.x, 0.0, 1.0), -float(solved.fun)
        return found, most
