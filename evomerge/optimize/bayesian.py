"""Bayesian optimization with floors: a Gaussian process for the objective and one for the margin above each floor.

Where ranks tell an evolution strategy which of ten candidates did better, the scores themselves tell a model how the
objective and each floor depend on the genes. The next candidate is the one that is most worth an evaluation by that
model (`acquisition.worth`), looked for by mutation around the best so far: in single genes, in all genes of a source, a
layer, a module at once, in steps of all sizes.

It is a function of the seed and of what it was told, and keeps nothing else: see `recall`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.optimize.base import Proposal, Sequential, check, identity
from evomerge.optimize.gaussian_process import GaussianProcess, Group, Matrix, worth
from evomerge.optimize.mutation import Mutation
from evomerge.optimize.ordering import FAILED, RankKey, rank_key
from evomerge.space.vector import Encoding
from evomerge.types import Dimension, Genome, Outcome

Told = tuple[Genome, Outcome]

_POOL, _ROUNDS, _KEPT = 300, 8, 8
"""How many mutants are looked at first, how often the `_KEPT` best of them are mutated again, by half as many."""

_PARENTS = 5
"""The best so far, around whom is looked."""

_MOST = 300
"""Of how many genomes, the best, the model is made."""

_MARGIN = 10
"""Every so many genomes, one choice takes another option than the model would have it."""

_NEXT, _ENOUGH = 0.002, 5
"""Where nothing feasible is known, and so many genomes within this share of every gene's range of what is proposed are,
another one there is not worth an evaluation: the model is wrong, and has to see something else."""

_REACH = 10.0
"""What lies further below the best than so many times what the best quarter spans counts by its logarithm: the hopeless
must not hide the differences between the others."""


class Surrogate(Sequential):
    """Asks for `population` genomes at a time (auto: as many as can be scored at a time); the later of them take for
    granted what is predicted of the earlier."""

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
        self._groups = _groups(self._encoding)
        self._scales: tuple[int, list[float]] | None = None

    def _askable(self) -> int:
        if self.asynchronous:
            return super()._askable()
        return self._population - self._n_told() - len(self._asked)

    def _n_told(self) -> int:
        return 0 if self.asynchronous else len(self.history) % self._population

    def _recall(self, genome: Genome) -> Proposal:
        """Takes the genome as it is recorded. What it would propose is a function of the seed and of what was told, but
        one of many floating-point operations, which another processor may round otherwise."""
        check(self.dimensions, genome)
        return self._take(genome)

    def _propose(self) -> Genome:
        generator = self._generator(self.count)
        told = [*self.start.known, *self.history[: len(self.history) - self._n_told()]]
        out = [*(genome for genome, _ in self.history[len(self.history) - self._n_told() :]), *self._asked]
        proposed = {identity(genome) for genome in (*out, *(genome for genome, _ in told))}
        if identity(self._initial()) not in proposed:
            return self._initial()
        able = sum(rank_key(outcome)[0] != FAILED for _, outcome in told)
        if able < 2 or len(proposed) < self._startup:
            return self._novel(self._encoding.decode(self._mutation.anywhere(1, generator)[0]), proposed, generator)
        genomes = [self._encoding.decode(vector) for vector in self._most_worth(told, out, generator)]
        if self._choices and self.count % _MARGIN == 0:
            genomes = [self._other_choice(genome, generator) for genome in genomes]
        new = next((genome for genome in genomes if identity(genome) not in proposed), genomes[0])
        if not any(outcome.feasible for _, outcome in told) and self._crowded(new, [*(g for g, _ in told), *out]):
            new = self._encoding.decode(self._mutation.anywhere(1, generator)[0])
        return self._novel(new, proposed, generator)

    def _other_choice(self, genome: Genome, generator: np.random.Generator) -> Genome:
        """With another option in one of the choices, so that none dies out."""
        dimension = self._choices[generator.integers(len(self._choices))]
        others = [option for option in dimension.choices if option != genome[dimension.key]]
        return {**genome, dimension.key: others[generator.integers(len(others))]}

    def _crowded(self, genome: Genome, others: Sequence[Genome]) -> bool:
        """Whether enough other genomes are next to it."""
        apart = np.abs(self._encoded(others) - self._encoding.encode(genome)).max(axis=1)
        return int((apart < _NEXT).sum()) >= _ENOUGH

    def _most_worth(self, told: Sequence[Told], out: Sequence[Genome], generator: np.random.Generator) -> Matrix:
        """[_KEPT, d] candidates, the one that is most worth it first; `out` is evaluated already."""
        age = len(told)
        told = sorted(told, key=_rank)[:_MOST]
        inputs = self._encoded([genome for genome, _ in told])
        model = self._model(inputs, [outcome for _, outcome in told], age)
        best = _best(model, inputs, [outcome.feasible for _, outcome in told])
        if out:
            model.believe(self._encoded(out))
        found = inputs[:_PARENTS]
        values = np.full(len(found), -math.inf)  # they are known
        for turn in range(_ROUNDS + 1):
            count, reach = (_POOL // 2, 0.75 ** (turn - 1)) if turn else (_POOL, 1.0)
            mutants = self._mutation.around(found, count, reach, generator)
            found = np.concatenate([found, mutants])
            values = np.concatenate([values, worth(*model.predict(mutants), best)])
            order = np.argsort(-values, kind="stable")[:_KEPT]
            found, values = found[order], values[order]
        return found

    def _model(self, inputs: Matrix, outcomes: Sequence[Outcome], age: int) -> GaussianProcess:
        """Its hyperparameters are found once for all genomes that are asked before more is told than now (`age`)."""
        known = self._scales[1] if self._scales and self._scales[0] == age else None
        model = GaussianProcess(inputs, targets(outcomes), self._groups, known)
        self._scales = age, model.scales
        return model

    def _encoded(self, genomes: Sequence[Genome]) -> Matrix:
        return np.array([self._encoding.encode(genome) for genome in genomes])


def _rank(pair: Told) -> RankKey:
    return rank_key(pair[1])


def _best(model: GaussianProcess, inputs: Matrix, feasible: Sequence[bool]) -> float | None:
    """The best objective among those that are feasible, by what the model makes of their scores: where these are noisy,
    the luckiest would look better, and just feasible, than anything that there is to find."""
    mean, _ = model.predict(inputs)
    margins = mean[:, 1:]
    believed = (margins >= -model.noise[1:]).all(axis=1) & np.array(feasible) | (margins >= 0).all(axis=1)
    return float(mean[believed, 0].max()) if believed.any() else None


def targets(outcomes: Sequence[Outcome]) -> Matrix:
    """[n, 1 + floors], the objective and the margins of each; where they are not all known, minus the shortfall.

    Failed ones get the worst of the others, and so do values that are not finite.
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
    finite = column[np.isfinite(column)]
    if not finite.size:
        return np.zeros_like(column)
    most, least = float(finite.max()), float(finite.min())
    span = most - float(np.quantile(finite, 0.75))
    column = np.nan_to_num(column, nan=least, neginf=least, posinf=most)
    if span <= 0:
        return column
    beyond = np.maximum(most - column - _REACH * span, 0.0)
    return column + beyond - span * np.log1p(beyond / span)


def _groups(encoding: Encoding) -> list[Group]:
    """The coordinates of each gene: a weight, a density and a choice have length scales of their own."""
    found: dict[tuple[str, bool], list[int]] = {}
    for dimension, place in zip(encoding.dimensions, encoding.places, strict=True):
        found.setdefault((dimension.gene, bool(dimension.choices)), []).extend(range(place.start, place.stop))
    return [np.array(group) for group in found.values()]
