"""Optuna's samplers behind ask and tell, without state: each ask builds its study from the history."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from evomerge.optimize.base import Sequential, identity
from evomerge.optimize.ranking import ranks
from evomerge.types import Dimension, Genome

_WHENEVER = datetime(2000, 1, 1)
"""Optuna wants to know when a finished trial ran; nothing depends on it."""


class _Sampled(Sequential):
    """An Optuna sampler that sees ranks instead of scores, so that its order is the feasibility-first one."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        self._distributions = {d.key: distribution(d) for d in self.dimensions}

    @abstractmethod
    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler: ...

    def _propose(self) -> Genome:
        if not self.count:
            return self._initial()
        generator = self._generator(self.count)
        with _quiet():
            study = optuna.create_study(sampler=self._sampler(int(generator.integers(2**32))))
            study.add_trials(self._lessons())
            params = study.ask(self._distributions).params
        genome = {d.key: d.tidy(params[d.key]) for d in self.dimensions}
        proposed = {identity(known) for known in (*self._asked, *(told for told, _ in self.history))}
        return self._novel(genome, proposed, generator)

    def _lessons(self) -> list[FrozenTrial]:
        """The trials so far, with their ranks as values to be minimized; those in flight have none yet."""
        places = ranks([outcome for _, outcome in self.history])
        told = zip(self.history, places, strict=True)
        ended = [_Told(genome, self._distributions, place) for (genome, _), place in told]
        return [*ended, *(_Told(genome, self._distributions, None) for genome in self._asked)]


class Tpe(_Sampled):
    """Multivariate TPE (Bergstra et al. 2011; Falkner et al. 2018, section 3.2); the first `startup` are random.
    Asynchronously, trials in flight count as bad ones (the constant liar), so that the next is not put beside them."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, *, startup: int = 10, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        self._startup = startup

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(
            n_startup_trials=self._startup, multivariate=True, constant_liar=self.asynchronous, seed=seed
        )


class Random(_Sampled):
    """Uniform at random: what every other optimizer has to beat."""

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.RandomSampler(seed=seed)

    def _lessons(self) -> list[FrozenTrial]:
        return []


class _Told(FrozenTrial):
    """A finished trial, or, without a value, one in flight. Its parts are never changed, so that a copy shares them:
    Optuna's storage copies every trial that it is given in full, which would take longer than sampling."""

    def __init__(self, genome: Genome, distributions: dict[str, BaseDistribution], value: float | None) -> None:
        super().__init__(
            number=0,
            trial_id=0,
            state=TrialState.RUNNING if value is None else TrialState.COMPLETE,
            value=value,
            datetime_start=_WHENEVER,
            datetime_complete=None if value is None else _WHENEVER,
            params=genome,
            distributions=distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> _Told:
        return copy.copy(self)


def distribution(dimension: Dimension) -> BaseDistribution:
    """The dimension as Optuna writes it."""
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither log lines (a study was created) nor warnings (a feature is experimental) of Optuna's, in here."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
