"""Bayesian optimization with floors: a Gaussian process for the objective and one for the margin above each floor.

Ranks tell an evolution strategy which of ten candidates did better. Scores tell a model how the objective and each
floor depend on the genes. The next candidate has the highest acquisition value by that model
(`gaussian_process.acquisition`). It is looked for by mutation around the best so far: in single genes, in all genes of
a source, a layer, a module at once, in steps of all sizes.

Proposals are a function of the seed and of the outcomes told. Nothing else is kept: see `recall`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.optimize.base import Proposal, Sequential, check, identity
from evomerge.optimize.gaussian_process import GaussianProcess, Group, Matrix, acquisition
from evomerge.optimize.mutation import Mutation
from evomerge.optimize.ordering import FAILED, RankKey, rank_key
from evomerge.space.vector import Encoding
from evomerge.types import Dimension, Genome, Outcome

Scored = tuple[Genome, Outcome]

_POOL, _ROUNDS, _KEPT = 300, 8, 8
"""The number of first mutants; how often the `_KEPT` best of them are mutated again, into half as many."""

_PARENTS = 5
"""The mutants' first parents are so many of the best genomes."""

_MOST_DATA = 300
"""The model is fitted to so many of the best genomes."""

_OTHER_CHOICE = 10
"""Every so many genomes, one choice takes another option than the model proposes."""

_NEAR, _CROWD = 0.002, 5
"""Where nothing feasible is known, and so many genomes are within this share of every gene's range of a proposal, one
more there is not worth an evaluation: the model is wrong, and needs other data."""

_REACH = 10.0
"""A value that is further below the best than so many times the span of the best quarter counts by its logarithm: the
hopeless must not hide the differences between the others."""


class Surrogate(Sequential):
    """Asks for `population` genomes at a time (auto: as many as can be scored at a time). For the later of them, the
    predictions of the earlier ones count as outcomes."""

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        seed: int,
        *,
        population: int | str = "auto",
        startup: int = 8,
        **common: Any,
    ) -> None:
        super().__init__(dimensions, seed, **common)
        self._encoding = Encoding(self.dimensions)
        self._population = self.num_workers if population == "auto" else int(population)
        self._startup = startup
        self._mutation = Mutation(self._encoding)
        self._groups = groups_of(self._encoding)
        self._fitted: tuple[int, list[float]] | None = None

    def _askable(self) -> int:
        if self.asynchronous:
            return super()._askable()
        return self._population - self._n_told() - len(self._asked)

    def _n_told(self) -> int:
        return 0 if self.asynchronous else len(self.history) % self._population

    def _recall(self, genome: Genome) -> Proposal:
        """Takes the genome as it is recorded. The proposal is a function of the seed and the outcomes, but by many
        floating-point operations, which another processor may round otherwise."""
        check(self.dimensions, genome)
        return self._take(genome)

    def _propose(self) -> Genome:
        generator = self._generator(self.count)
        n_learned = len(self.history) - self._n_told()
        scored = [*self.start.known, *self.history[:n_learned]]
        pending = [*(genome for genome, _ in self.history[n_learned:]), *self._asked]
        proposed = {identity(genome) for genome in (*pending, *(genome for genome, _ in scored))}
        # 1. The initial genome, then random ones, until there are enough outcomes for a model.
        if identity(self._initial()) not in proposed:
            return self._initial()
        usable = sum(rank_key(outcome)[0] != FAILED for _, outcome in scored)
        if usable < 2 or len(proposed) < self._startup:
            return self._novel(self._anywhere(generator), proposed, generator)
        # 2. The new genome with the highest acquisition value.
        genomes = [self._encoding.decode(vector) for vector in self._candidates(scored, pending, generator)]
        if self._choices and self.count % _OTHER_CHOICE == 0:
            genomes = [self._other_choice(genome, generator) for genome in genomes]
        new = next((genome for genome in genomes if identity(genome) not in proposed), genomes[0])
        # 3. A random one in its place where the model keeps looking where nothing is feasible.
        others = [*(genome for genome, _ in scored), *pending]
        if not any(outcome.feasible for _, outcome in scored) and self._crowded(new, others):
            new = self._anywhere(generator)
        return self._novel(new, proposed, generator)

    def _anywhere(self, generator: np.random.Generator) -> Genome:
        return self._encoding.decode(self._mutation.anywhere(1, generator)[0])

    def _other_choice(self, genome: Genome, generator: np.random.Generator) -> Genome:
        """The genome with another option in one of the choices, so that none dies out."""
        dimension = self._choices[generator.integers(len(self._choices))]
        others = [option for option in dimension.choices if option != genome[dimension.key]]
        return {**genome, dimension.key: others[generator.integers(len(others))]}

    def _crowded(self, genome: Genome, others: Sequence[Genome]) -> bool:
        """Whether `_CROWD` other genomes are next to it."""
        distances = np.abs(self._encoded(others) - self._encoding.encode(genome)).max(axis=1)
        return int((distances < _NEAR).sum()) >= _CROWD

    def _candidates(
        self, scored: Sequence[Scored], pending: Sequence[Genome], generator: np.random.Generator
    ) -> Matrix:
        """[_KEPT, d] vectors, the highest acquisition value first. `pending`: genomes that are being evaluated."""
        # 1. Fit the model to the best outcomes, and add its predictions at pending genomes.
        n_scored = len(scored)
        scored = sorted(scored, key=_rank)[:_MOST_DATA]
        inputs = self._encoded([genome for genome, _ in scored])
        model = self._model(inputs, [outcome for _, outcome in scored], n_scored)
        best = _best(model, inputs, [outcome.feasible for _, outcome in scored])
        if pending:
            model.add_fantasies(self._encoded(pending))
        # 2. Maximize the acquisition function by mutation: the best mutants are the next parents, in smaller steps.
        kept = inputs[:_PARENTS]
        values = np.full(len(kept), -math.inf)  # their outcomes are known
        for turn in range(_ROUNDS + 1):
            count, reach = (_POOL // 2, 0.75 ** (turn - 1)) if turn else (_POOL, 1.0)
            mutants = self._mutation.around(kept, count, reach, generator)
            kept = np.concatenate([kept, mutants])
            values = np.concatenate([values, acquisition(*model.predict(mutants), best)])
            order = np.argsort(-values, kind="stable")[:_KEPT]
            kept, values = kept[order], values[order]
        return kept

    def _model(self, inputs: Matrix, outcomes: Sequence[Outcome], n_scored: int) -> GaussianProcess:
        """The model of these outcomes. Its hyperparameters are fitted once for all genomes that are asked while
        `n_scored` outcomes are known."""
        fitted = self._fitted[1] if self._fitted and self._fitted[0] == n_scored else None
        model = GaussianProcess(inputs, targets(outcomes), self._groups, fitted)
        self._fitted = n_scored, model.hyperparameters
        return model

    def _encoded(self, genomes: Sequence[Genome]) -> Matrix:
        return np.array([self._encoding.encode(genome) for genome in genomes])


def _rank(pair: Scored) -> RankKey:
    return rank_key(pair[1])


def _best(model: GaussianProcess, inputs: Matrix, feasible: Sequence[bool]) -> float | None:
    """The best objective among the feasible genomes, by the model's predictions of them. Where scores are noisy, the
    luckiest one would look better, and just feasible, than any that there is to find."""
    mean, _ = model.predict(inputs)
    margins = mean[:, 1:]
    plausible = (margins >= -model.noise[1:]).all(axis=1) & np.array(feasible) | (margins >= 0).all(axis=1)
    return float(mean[plausible, 0].max()) if plausible.any() else None


def targets(outcomes: Sequence[Outcome]) -> Matrix:
    """[n, 1 + floors], the objective and the margins of each outcome; where margins are missing, minus the shortfall.

    Failed ones get the worst values of the others, and so do values that are not finite.
    """
    widths = {len(outcome.margins) for outcome in outcomes if not outcome.failed}
    margins = len(widths) == 1 and 0 not in widths
    missed = any(outcome.shortfall > 0 for outcome in outcomes)
    rows = []
    for outcome in outcomes:
        floors = outcome.margins if margins else ((-outcome.shortfall,) if missed else ())
        rows.append([outcome.objective, *floors])
    width = max(len(row) for row in rows)
    table = np.array([row if len(row) == width else [math.nan] * width for row in rows])
    failed = [rank_key(outcome)[0] == FAILED for outcome in outcomes]
    table[failed] = math.nan
    return np.stack([_within_reach(column) for column in table.T], axis=1)


def _within_reach(column: Matrix) -> Matrix:
    """One target with finite values, the hopeless ones compressed: best - r - s log(1 + excess / s), where r is the
    reach, s the span of the best quarter, and the excess what lies beyond the reach."""
    finite = column[np.isfinite(column)]
    if not finite.size:
        return np.zeros_like(column)
    most, least = float(finite.max()), float(finite.min())
    span = most - float(np.quantile(finite, 0.75))
    column = np.nan_to_num(column, nan=least, neginf=least, posinf=most)
    if span <= 0:
        return column
    excess = np.maximum(most - column - _REACH * span, 0.0)
    return column + excess - span * np.log1p(excess / span)


def groups_of(encoding: Encoding) -> list[Group]:
    """The coordinates of each gene: a weight, a density and a choice have length scales of their own."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for dimension, place in zip(encoding.dimensions, encoding.places, strict=True):
        groups.setdefault((dimension.gene, bool(dimension.choices)), []).extend(range(place.start, place.stop))
    return [np.array(group) for group in groups.values()]
