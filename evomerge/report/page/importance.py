"""How much each gene matters: its effect by the model that the default optimizer searches with.

A Gaussian process (`optimize.gaussian_process`, as `optimizer: surrogate` has it) is fitted to the objectives of the
best trials. A gene's effect is how much the predicted objective changes when this gene alone goes from its low to its
high values (the 10th and the 90th percentile of those tried) while all others stay as in the trial that the page is
about. The process also says how sure it is of that difference, which gives the interval. Of a choice it is the
difference between its best and its worst option.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.errors import InputError
from evomerge.files.objects import GeneSpec
from evomerge.files.space_file import read_space
from evomerge.optimize.bayesian import groups_of, targets
from evomerge.optimize.gaussian_process import GaussianProcess, Matrix
from evomerge.optimize.ordering import rank_key
from evomerge.report.page.run import Run
from evomerge.space.vector import Encoding
from evomerge.study.run.trial import Trial
from evomerge.types import Dimension

LEAST, MOST_TRIALS, SHOWN = 8, 200, 20
"""The fewest trials that a model is fitted to, the most, and how many genes a page shows."""

MOST_COORDINATES = 500_000
"""Of trials times genes: of more genes fewer trials are taken, so that the work stays in seconds."""

_AT_ONCE = 1000
"""Genes whose predictions are in memory together."""

_SURE = 1.959963984540054
"""Standard errors to each side of a 95 % interval."""


def importance_data(run: Run) -> dict[str, Any] | None:
    """Returns the genes with the largest effects on the objective, largest first; None where there are no genes, or too
    few trials."""
    trials = [t for t in run.searched() if t.ranked and t.is_proposed and t.duplicate_of is None]
    trials = [t for t in trials if t.genome.keys() == trials[0].genome.keys()]
    if len(trials) < LEAST:
        return None
    dimensions = _dimensions(run, trials)
    most = max(LEAST, min(MOST_TRIALS, MOST_COORDINATES // max(1, len(dimensions))))
    board = run.state.search
    trials = sorted(trials, key=lambda t: rank_key(board.outcome(t)))[:most]
    subject = run.subject
    center = subject if subject is not None and subject.genome else trials[0]
    effects = _effects(dimensions, trials, center, board)
    shown = sorted(effects, key=lambda e: -abs(e["effect"]))[:SHOWN]
    return {
        "genes": len(dimensions),
        "trials": len(trials),
        "around": center.number,
        "effects": shown,
        "clear": sum(e["interval"][0] > 0 or e["interval"][1] < 0 for e in effects),
    }


def _dimensions(run: Run, trials: Sequence[Trial]) -> list[Dimension]:
    """The searched genes with their ranges, as the space file has them; where it cannot be read, those that the trials
    went through."""
    try:
        # The optimizer does not matter here; one of an older run may not be known any more.
        spec = read_space(run.folder.space, optimizer="random", fitness=run.folder.fitness)
        genes = {gene.name: gene for gene in spec.genes}
    except (InputError, OSError):
        genes = {}
    return [_dimension(key, genes.get(key.partition("[")[0]), trials) for key in trials[0].genome]


def _dimension(key: str, gene: GeneSpec | None, trials: Sequence[Trial]) -> Dimension:
    name, values = key.partition("[")[0], [trial.genome[key] for trial in trials]
    if any(isinstance(value, str) for value in values):
        return Dimension(key, choices=tuple(sorted({str(value) for value in values})), gene=name)
    numbers = [float(value) for value in values]
    if gene is None or not gene.low <= min(numbers) <= max(numbers) <= gene.high:
        return Dimension(key, min(numbers), max(numbers), numbers[0], gene=name)
    return Dimension(key, gene.low, gene.high, numbers[0], gene.log, gene=name)


def _effects(dimensions: Sequence[Dimension], trials: Sequence[Trial], center: Trial, board: Any) -> list[Any]:
    encoding = Encoding(dimensions)
    inputs = np.array([encoding.encode(trial.genome) for trial in trials])
    outputs = targets([board.outcome(trial) for trial in trials])[:, :1]
    model = GaussianProcess(inputs, outputs, groups_of(encoding))
    middle = encoding.encode(center.genome)
    low, high = np.quantile(inputs, 0.1, axis=0), np.quantile(inputs, 0.9, axis=0)
    numeric = [(d, place.start) for d, place in zip(dimensions, encoding.places, strict=True) if not d.choices]
    effects: list[dict[str, Any]] = []
    for start in range(0, len(numeric), _AT_ONCE):
        part = numeric[start : start + _AT_ONCE]
        places = np.array([at for _, at in part])
        change, error = model.predict_differences(middle, places, low[places], high[places])
        effects += [_effect(d, float(c), float(e)) for (d, _), c, e in zip(part, change, error, strict=True)]
    for dimension, place in zip(dimensions, encoding.places, strict=True):
        if dimension.choices:
            effects.append(_of_choice(model, dimension, middle, place))
    return effects


def _of_choice(model: GaussianProcess, dimension: Dimension, middle: Any, place: slice) -> dict[str, Any]:
    """The difference between the best and the worst option. Errors are those of both, as if they were independent, so
    that the interval is rather too wide."""
    options: Matrix = np.repeat(middle[None, :], len(dimension.choices), axis=0)
    options[:, place] = np.eye(len(dimension.choices))
    mean, std = model.predict(options)
    best, worst = int(mean[:, 0].argmax()), int(mean[:, 0].argmin())
    error = float(np.hypot(std[best, 0], std[worst, 0])) if best != worst else 0.0
    words = f"{dimension.choices[worst]} to {dimension.choices[best]}"
    return {**_effect(dimension, float(mean[best, 0] - mean[worst, 0]), error), "options": words}


def _effect(dimension: Dimension, change: float, error: float) -> dict[str, Any]:
    return {
        "gene": dimension.key,
        "effect": change,
        "interval": (change - _SURE * error, change + _SURE * error),
    }
