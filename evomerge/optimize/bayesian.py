"""Bayesian optimization with floors: a Gaussian process for the objective and one for the margin above each floor.

Ranks tell an evolution strategy which of ten candidates did better. Scores tell a model how the objective and each
floor depend on the genes. The next candidate has the highest acquisition value by that model
(`gaussian_process.acquisition`). It is looked for by mutation around the best so far: in single genes, in all genes of
a source, a layer, a module at once, in steps of all sizes.

Many workers ask faster than a model can be fitted and searched for each of them. So genomes are proposed in batches: a
quarter of what is scored at a time comes of one model and one search (`_pick`), and the model's hyperparameters are
fitted anew when a tenth more is known.

Proposals are a function of the seed, of the outcomes told, and of how asking and telling took turns. Nothing else is
kept: see `recall`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.optimize.base import GenomeId, Proposal, Sequential, check, identity
from evomerge.optimize.gaussian_process import (
    Believer,
    GaussianProcess,
    Group,
    Matrix,
    Vector,
    acquisition,
    unexplained,
)
from evomerge.optimize.mutation import Mutation
from evomerge.optimize.ordering import FAILED, RankKey, rank_key
from evomerge.space.vector import Encoding
from evomerge.types import Dimension, Genome, Outcome

Scored = tuple[Genome, Outcome]

_SHARE = 4
"""A batch is so great a share of the genomes that are scored at a time: the outcomes of the other three quarters are
known, or come while it is scored."""

_GROWTH = 1.1
"""The model of a batch is fitted anew when so many times as many outcomes are known."""

_POOL, _ROUNDS, _KEPT = 300, 8, 8
"""The number of first mutants; how often the `_KEPT` best of them are mutated again, into half as many."""

_CHOICE = 256
"""So many mutants, or eight times as many as it needs, are what a batch is picked from."""

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
    predictions of the earlier ones count as outcomes. From 8 workers on, several come of one model (`_SHARE`)."""

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
        at_a_time = self.num_workers if self.asynchronous else min(self.num_workers, self._population)
        self._batch_size = max(1, at_a_time // _SHARE)
        self._opened = _Opened(0, 0, ())
        self._batch: list[Genome] = []
        self._vectors: dict[GenomeId, Vector] = {}

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
        self._place_in_batch()
        return self._take(genome)

    def _propose(self) -> Genome:
        place = self._place_in_batch()
        if not self._batch:  # it begins here, or the process does
            self._batch = self._proposed_by(self._opened)
        return self._batch[place]

    def _place_in_batch(self) -> int:
        """The next genome's place in its batch. With the first one, what is known is noted: the batch goes by that,
        also where a later process proposes the rest of it."""
        place = (self.count if self.asynchronous else self.count % self._population) % self._batch_size
        if place == 0:
            n_learned = len(self.history) - self._n_told()
            pending = *(genome for genome, _ in self.history[n_learned:]), *self._asked
            self._opened, self._batch = _Opened(self.count, n_learned, pending), []
        return place

    def _proposed_by(self, opened: _Opened) -> list[Genome]:
        """The genomes of a batch."""
        scored = [*self.start.known, *self.history[: opened.n_learned]]
        proposed = {identity(genome) for genome in (*opened.pending, *(genome for genome, _ in scored))}
        batch: list[Genome] = []

        def add(genome: Genome) -> None:
            batch.append(genome)
            proposed.add(identity(genome))

        # 1. The initial genome, then random ones, until there are enough outcomes for a model.
        usable = sum(rank_key(outcome)[0] != FAILED for _, outcome in scored)
        while len(batch) < self._batch_size:
            generator = self._generator(opened.count + len(batch))
            if identity(self._initial()) not in proposed:
                add(self._initial())
            elif usable < 2 or len(proposed) < self._startup:
                add(self._novel(self._anywhere(generator), proposed, generator))
            else:
                break
        # 2. New genomes of the highest acquisition value.
        if missing := self._batch_size - len(batch):
            pending = [*opened.pending, *batch]
            others = [*(genome for genome, _ in scored), *pending]
            hopeless = not any(outcome.feasible for _, outcome in scored)
            taken = self._encoded(others) if hopeless else None
            candidates = self._candidates(scored, pending, missing, generator)
            while len(batch) < self._batch_size:
                vectors = next(candidates, None)
                if vectors is None:
                    add(self._novel(self._anywhere(generator), proposed, generator))
                    continue
                genomes = [self._encoding.decode(v) for v in vectors]
                if missing > 1 and self._genome_count is None and identity(genomes[0]) in proposed:
                    continue
                add(self._new(genomes, opened.count + len(batch), proposed, taken, generator))
        return batch

    def _new(
        self,
        genomes: list[Genome],
        number: int,
        proposed: set[GenomeId],
        taken: Matrix | None,
        generator: np.random.Generator,
    ) -> Genome:
        """The first genome that was not proposed before; or another one, for the reasons that follow. `taken`: where
        genomes are, if nothing feasible is known."""
        if self._choices and number % _OTHER_CHOICE == 0:
            genomes = [self._other_choice(genome, generator) for genome in genomes]
        new = next((genome for genome in genomes if identity(genome) not in proposed), genomes[0])
        # A random one in its place where the model keeps looking where nothing is feasible.
        if taken is not None and self._crowded(new, taken):
            new = self._anywhere(generator)
        return self._novel(new, proposed, generator)

    def _anywhere(self, generator: np.random.Generator) -> Genome:
        return self._encoding.decode(self._mutation.anywhere(1, generator)[0])

    def _other_choice(self, genome: Genome, generator: np.random.Generator) -> Genome:
        """The genome with another option in one of the choices, so that none dies out."""
        dimension = self._choices[generator.integers(len(self._choices))]
        others = [option for option in dimension.choices if option != genome[dimension.key]]
        return {**genome, dimension.key: others[generator.integers(len(others))]}

    def _crowded(self, genome: Genome, others: Matrix) -> bool:
        """Whether `_CROWD` other genomes are next to it."""
        distances = np.abs(others - self._encoding.encode(genome)).max(axis=1)
        return int((distances < _NEAR).sum()) >= _CROWD

    def _candidates(
        self, scored: Sequence[Scored], pending: Sequence[Genome], count: int, generator: np.random.Generator
    ) -> Iterator[Matrix]:
        """For one genome after the other some vectors [k, d], the best first; enough for `count` of them. `pending`:
        genomes that are being evaluated."""
        # 1. Fit the model to the best outcomes, and add its predictions at pending genomes.
        hyperparameters = self._hyperparameters(scored)
        best_scored = _best_of(scored)
        inputs = self._encoded([genome for genome, _ in best_scored])
        outcomes = [outcome for _, outcome in best_scored]
        model = GaussianProcess(inputs, targets(outcomes), self._groups, hyperparameters)
        self._fitted = self._fit_at(len(scored)), model.hyperparameters
        best = _best(model, inputs, [outcome.feasible for outcome in outcomes])
        if pending:
            model.add_fantasies(self._encoded(pending))
        # 2. Maximize the acquisition function by mutation: the best mutants are the next parents, in smaller steps.
        kept, n_kept, pool = inputs[:_PARENTS], max(_KEPT, count), max(_POOL, 2 * count)
        values = np.full(len(kept), -math.inf)  # their outcomes are known
        seen: list[tuple[Vector, Matrix, Matrix, Matrix]] = []
        for turn in range(_ROUNDS + 1):
            size, reach = (pool // 2, 0.75 ** (turn - 1)) if turn else (pool, 1.0)
            mutants = self._mutation.around(kept, size, reach, generator)
            mean, explained = model.explained(mutants)
            worth = acquisition(mean, model.scaled(np.sqrt(unexplained(explained))), best)
            if count > 1:
                seen.append((worth, mutants, mean, explained.T))
            kept = np.concatenate([kept, mutants])
            values = np.concatenate([values, worth])
            order = np.argsort(-values, kind="stable")[:n_kept]
            kept, values = kept[order], values[order]
        if count == 1:
            yield kept
        else:
            # 3. Of all that was seen, the best are what a batch is picked from.
            worth, *whole = (np.concatenate(parts) for parts in zip(*seen, strict=True))
            order = np.argsort(-worth, kind="stable")[: max(_CHOICE, 8 * count)]
            mutants, mean, explained = (part[order] for part in whole)
            yield from _pick(Believer(model, mutants, mean, explained.T), mutants, best)

    def _fit_at(self, n_scored: int) -> int:
        """How many of the scored genomes the hyperparameters are fitted to. Those of single proposals are fitted to
        all; those of batches when `_GROWTH` times as many are known, so that they are a function of the outcomes,
        whatever process proposes."""
        if self._batch_size == 1 or n_scored <= self._startup:
            return n_scored
        steps = math.floor(math.log(n_scored / self._startup, _GROWTH))
        return min(n_scored, math.ceil(self._startup * _GROWTH**steps))

    def _hyperparameters(self, scored: Sequence[Scored]) -> list[float] | None:
        """Those of the outcomes that `_fit_at` names; None where the model's own are to be fitted."""
        count = self._fit_at(len(scored))
        if self._fitted is not None and self._fitted[0] == count:
            return self._fitted[1]
        if count == len(scored):
            return None
        first = _best_of(scored[:count])
        inputs = self._encoded([genome for genome, _ in first])
        return GaussianProcess(inputs, targets([outcome for _, outcome in first]), self._groups).hyperparameters

    def _encoded(self, genomes: Sequence[Genome]) -> Matrix:
        return np.array([self._vector(genome) for genome in genomes])

    def _vector(self, genome: Genome) -> Vector:
        """Encoded once: each model takes in hundreds of genomes that the last one had."""
        key = identity(genome)
        if key not in self._vectors:
            self._vectors[key] = self._encoding.encode(genome)
        return self._vectors[key]


@dataclass(frozen=True)
class _Opened:
    """What a batch of proposals goes by: how many genomes were asked before it, how many of these were learned from,
    and the genomes that were being scored."""

    count: int
    n_learned: int
    pending: tuple[Genome, ...]


def _rank(pair: Scored) -> RankKey:
    return rank_key(pair[1])


def _best_of(scored: Sequence[Scored]) -> list[Scored]:
    return sorted(scored, key=_rank)[:_MOST_DATA]


def _pick(believer: Believer, vectors: Matrix, best: float | None) -> Iterator[Matrix]:
    """The vectors, each as [1, d]: one after the other the one of the highest acquisition value, if the
    predictions at those before it come true. What is known at one of them leaves less to learn beside it."""
    picked: list[int] = []
    while len(picked) < len(vectors):
        values = acquisition(believer.mean, believer.std, best)
        values[picked] = -math.inf
        picked.append(int(values.argmax()))
        yield vectors[picked[-1:]]
        believer.believe(picked[-1])


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
