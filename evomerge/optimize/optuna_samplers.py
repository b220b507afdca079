"""Optuna's samplers as optimizers without state: each ask builds a study from the history."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from evomerge.optimize.base import GenomeId, Sequential, identity
from evomerge.optimize.optuna_targets import OptunaTarget, optuna_targets
from evomerge.types import Dimension, Genome

_ANY_TIME = datetime(2000, 1, 1)
"""When a finished trial ran, which Optuna requires; nothing depends on it."""

_REDRAWS = 50
"""The most genes that are drawn anew to make a genome one that was not proposed before."""


class OptunaSampler(Sequential):
    """An Optuna sampler. It maximises every objective, with the floors as constraints."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        self._distributions = {d.key: distribution(d) for d in self.dimensions}

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler: ...

    def _propose(self) -> Genome:
        known = {identity(genome) for genome in (*self._known, *self._asked)}
        if self.count == 0 and identity(self._initial()) not in known:
            return self._initial()
        generator = self._generator(self.count)
        with _quiet():
            params = self._sample(int(generator.integers(2**32)))
        return self._novel({d.key: d.tidy(params[d.key]) for d in self.dimensions}, known, generator)

    @property
    def _known(self) -> list[Genome]:
        """The genomes with known outcomes."""
        return [genome for genome, _ in (*self.start.known, *self.history)]

    def _sample(self, seed: int) -> dict[str, Any]:
        return self._study(self._sampler(seed)).ask(self._distributions).params

    def _study(self, sampler: BaseSampler) -> Study:
        """A study of all known outcomes, and of the genomes that are asked and not told."""
        study = optuna.create_study(directions=["maximize"] * self.objectives, sampler=sampler)
        targets = optuna_targets([outcome for _, outcome in (*self.start.known, *self.history)], self.objectives)
        finished = enumerate(zip(self._known, targets, strict=True))
        study.add_trials([self._trial(number, genome, target) for number, (genome, target) in finished])
        study.add_trials([OptunaTrial(genome, self._distributions) for genome in self._asked])
        return study

    def _trial(self, number: int, genome: Genome, target: OptunaTarget) -> OptunaTrial:
        return OptunaTrial(genome, self._distributions, target)

    def _novel(self, genome: Genome, proposed: Container[GenomeId], generator: np.random.Generator) -> Genome:
        """As in the base, but for numbers, which do repeat here: children are copies of their parents, and a best
        genome in a corner of the space is proposed again and again. Genes are drawn anew, one after the other, until
        the genome is new."""
        if all(dimension.choices for dimension in self.dimensions):
            return super()._novel(genome, proposed, generator)
        searched = [d for d in self.dimensions if not self._distributions[d.key].single()]
        redrawn = dict(genome)
        for _ in range(_REDRAWS if searched else 0):
            if identity(redrawn) not in proposed:
                break
            dimension = searched[generator.integers(len(searched))]
            redrawn[dimension.key] = _drawn(dimension, generator)
        return redrawn


class Tpe(OptunaSampler):
    """TPE (Bergstra et al. 2011; for several objectives Ozaki et al. 2022, "Multiobjective Tree-structured Parzen
    Estimator"; with constraints Watanabe & Hutter 2023); the first `startup` are random. For one objective it is the
    multivariate one (Falkner et al. 2018, section 3.2). Genomes in flight count as poor ones."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, *, startup: int = 10, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        self._startup = startup

    def _sampler(self, seed: int) -> BaseSampler:
        return optuna.samplers.TPESampler(
            n_startup_trials=self._startup, multivariate=self.objectives == 1, constant_liar=True, seed=seed
        )


class Random(OptunaSampler):
    """Uniform at random: the baseline of every other optimizer."""

    def _sampler(self, seed: int) -> BaseSampler:
        return optuna.samplers.RandomSampler(seed=seed)

    def _study(self, sampler: BaseSampler) -> Study:
        return optuna.create_study(sampler=sampler)


class Qmc(OptunaSampler):
    """A scrambled Sobol' sequence (Owen 1998): as even a cover of the space as there is, whatever the outcomes. A
    choice takes one of its coordinates, cut into equal parts."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        # This study counts the points that were asked for. Optuna takes the coordinates from its first trial.
        with _quiet():
            self._sequence = optuna.create_study(sampler=self._sampler(int(self._generator(0).integers(2**32))))
        drawn = {d.key: dist for d in self.dimensions if not (dist := self._distributions[d.key]).single()}
        initial = self._initial()
        self._sequence.add_trial(OptunaTrial({key: initial[key] for key in drawn}, drawn, OptunaTarget((0.0,), ())))

    def _sampler(self, seed: int) -> BaseSampler:
        return optuna.samplers.QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)

    def _sample(self, seed: int) -> dict[str, Any]:
        return self._sequence.ask(self._distributions).params


class OptunaTrial(FrozenTrial):
    """A trial, finished with a target or still running. Its parts are never changed, so that a copy shares them:
    Optuna's storage makes a deep copy of every trial, which would take longer than sampling."""

    def __init__(
        self,
        genome: Genome,
        distributions: dict[str, BaseDistribution],
        target: OptunaTarget | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            number=0,
            trial_id=0,
            state=TrialState.COMPLETE if target else TrialState.RUNNING,
            value=None,
            values=target.values if target else None,
            datetime_start=_ANY_TIME,
            datetime_complete=_ANY_TIME if target else None,
            params=genome,
            distributions=distributions,
            user_attrs={},
            system_attrs=attributes or {},
            intermediate_values={},
        )
        for at, violation in enumerate(target.constraints if target else ()):
            self.set_constraint(str(at), violation)

    def __deepcopy__(self, memo: dict[int, Any]) -> OptunaTrial:
        return copy.copy(self)


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as an Optuna distribution."""
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _drawn(dimension: Dimension, generator: np.random.Generator) -> Any:
    """A random value of the dimension."""
    if dimension.choices:
        return dimension.choices[generator.integers(len(dimension.choices))]
    if dimension.log:
        return dimension.tidy(float(np.exp(generator.uniform(np.log(dimension.low), np.log(dimension.high)))))
    return dimension.tidy(generator.uniform(dimension.low, dimension.high))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Optuna's log lines (a study was created, a package is unavailable) and warnings (a feature is
    experimental)."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
