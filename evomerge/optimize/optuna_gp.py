"""Bayesian optimization by Optuna's GP sampler: one Gaussian process for the objective, one for each floor that
somebody missed; what is proposed has the largest expected improvement, times the probability of being feasible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import optuna
import torch

from evomerge.optimize.lessons import OptunaTarget, lessons
from evomerge.optimize.optuna_samplers import _Sampled
from evomerge.types import Dimension, Outcome

_HOPELESS = 10.0
"""A floor that is missed by more than so many times its scale is missed by so much: a single broken merge would
otherwise make all others look the same."""


class Gp(_Sampled):
    """Gaussian processes with a Matérn kernel and a length scale for each gene; the first `startup` are random. It is
    told the normal scores of the objective's ranks, for the same reason. Genomes that are out count with whatever they
    may turn out to be."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, *, startup: int = 10, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        self._startup = startup

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GPSampler(n_startup_trials=self._startup, seed=seed, warn_independent_sampling=False)

    def _sample(self, seed: int) -> dict[str, Any]:
        with _one_thread():
            return super()._sample(seed)

    def _lessons(self, outcomes: Sequence[Outcome]) -> list[OptunaTarget]:
        learned = lessons(outcomes, self.objectives, _HOPELESS)
        scores = _normal_scores([lesson.values[0] for lesson in learned])
        return [replace(lesson, values=(score,)) for lesson, score in zip(learned, scores, strict=True)]


def _normal_scores(values: Sequence[float]) -> list[float]:
    """The quantiles of a normal distribution at the ranks; equal values share one."""
    order, count = sorted(values), len(values)
    first = {value: at for at, value in reversed(list(enumerate(order)))}
    last = {value: at for at, value in enumerate(order)}
    return [NormalDist().inv_cdf((first[v] + last[v] + 1) / (2 * count)) for v in values]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, whatever the machine: a run can be resumed elsewhere. The matrices are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
