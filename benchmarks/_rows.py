"""The optimizers that benchmarks/search.py compares, each with what it would be given by who uses it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evomerge.optimize.base import Optimizer, Sequential, Start
from evomerge.optimize.build import build
from evomerge.types import Dimension, Genome, Outcome

OURS = "default"


class MergekitEvolve(Sequential):
    """CMA-ES as mergekit-evolve sets it up: pycma from 1 / number of sources with sigma 1/6, absolute values of what it
    draws, the plain objective, no floors."""

    def __init__(self, dimensions: Sequence[Dimension], seed: int, **common: Any) -> None:
        super().__init__(dimensions, seed, **common)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cma
        sources = len({d.place["sources"] for d in dimensions})
        options = {"seed": seed + 1, "verbose": -9, "maxfevals": 1e9, "tolfun": 0, "tolx": 0, "tolstagnation": 1e9}
        self._es = cma.CMAEvolutionStrategy([1 / sources] * len(dimensions), 1 / 6, options)
        self._vectors: list[Any] = []
        self._losses: list[float] = []

    def _propose(self) -> Genome:
        if not self._vectors:
            self._vectors = self._es.ask()
        vector = np.abs(self._vectors[len(self._losses)])
        return {d.key: float(f"{value:.6g}") for d, value in zip(self.dimensions, vector, strict=True)}

    def _learn(self, outcome: Outcome) -> None:
        self._losses.append(-outcome.objective)
        if len(self._losses) == len(self._vectors):
            self._es.tell(self._vectors, self._losses)
            self._vectors, self._losses = [], []


def _ours(name: str, **options: Any) -> Callable[[Sequence[Dimension], int, Start], Optimizer]:
    return lambda dimensions, seed, start: build(name, dimensions, seed, options, start)


def _cold(name: str, **options: Any) -> Callable[[Sequence[Dimension], int, Start], Optimizer]:
    """Without any reference genome, as one would use the library by itself."""
    return lambda dimensions, seed, start: build(name, dimensions, seed, options)


def _botorch(name: str, *, told: bool = False) -> Callable[[Sequence[Dimension], int, Start], Optimizer]:
    """A search of `_botorch.py`; `told`: how the references did, in place of its first points."""

    def make(dimensions: Sequence[Dimension], seed: int, start: Start) -> Optimizer:
        import _botorch  # takes seconds, and the extra `bench`

        return getattr(_botorch, name)(dimensions, seed, start=Start(known=start.known) if told else None)

    return make


ROWS: dict[str, Callable[[Sequence[Dimension], int, Start], Optimizer]] = {
    OURS: _ours("surrogate"),
    "cma-es": _ours("cma-es"),
    "random": _cold("random"),
    "grid": _cold("grid", levels=5),
    "greedy soup": _ours("greedy-soup"),
    "Optuna TPE": _cold("tpe", warm_start=False),
    "mergekit-evolve": lambda dimensions, seed, start: MergekitEvolve(dimensions, seed),
    "qLogNEI": _botorch("QLogNEI"),
    "qLogNEI, references": _botorch("QLogNEI", told=True),
    "SCBO": _botorch("SCBO"),
    "SAASBO": _botorch("SAASBO"),
}
"""Name -> maker. Those of evomerge are told how the references did, which their budget pays for (`PAY`)."""

PAY = (OURS, "cma-es", "greedy soup", "qLogNEI, references")

LIMITED = {row: 48 for row in ROWS if row.startswith(("qLogNEI", "SCBO", "SAASBO"))}
"""Rows that end after so many evaluations."""
