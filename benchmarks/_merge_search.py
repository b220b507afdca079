"""evomerge's own optimizers for benchmarks/training.py: the same forward passes, items and seconds as training has.

References (base, sources, average) are scored first and paid for. The five best candidates by the search items are
scored on the holdout items, and the best one that meets the floors there is what was found, as in a search's release;
without one, it is the best by the search items.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from _bands import Bands
from _fitting import Slices, split
from _testbeds import Testbed, bits, nats, scores
from torch import Tensor

from evomerge.optimize.base import Start
from evomerge.optimize.build import build
from evomerge.optimize.ordering import rank_key
from evomerge.space.reference_genomes import reference_genomes
from evomerge.types import Dimension, Genome, Outcome, Slopes

_TOP = 5
_LAYER = re.compile(r"\.(\d+)\.")
_MICRO = 4
"""Items a slice in a micro-batch of a gradient."""


Trials = Sequence[tuple[Genome, Outcome]]


class MergeSearch:
    """Task arithmetic in memory. `gradient`: a weight in [-1, 2] for each source and tensor, and `warm_start:
    gradient`; otherwise a weight in [0, 1] for each source and layer, and the default optimizer."""

    def __init__(self, bed: Testbed, search: Slices, seed: int, gradient: bool) -> None:
        self._bed, self._search, self._gradient = bed, search, gradient
        self._bands = Bands(bed.base, list(bed.sources.values()), 1)
        self.dimensions, self._places = _dimensions(bed, gradient)
        self._followed, self._checked = split(search)
        references = reference_genomes(self.dimensions, list(bed.sources), ["task_arithmetic"], {"normalize": False})
        named = {n: r for n, r in references.items() if n in ("base", "uniform", *bed.sources)}
        measured = {name: self._scores(r.genome, search) for name, r in named.items()}
        parents = [measured[name] for name in measured if name != "uniform"]
        self._floors = measured["base"]
        self._scale = [max(c) - min(c) or 1.0 for c in zip(*parents, strict=True)]
        self._known = [(named[name].genome, self._outcome(values)) for name, values in measured.items()]
        self._parents = [named[name].genome for name in measured if name != "uniform"]
        self._checked_floors = self._scores(named["base"].genome, self._checked) if gradient else []
        options: dict[str, Any] = {"warm_start": "gradient"} if gradient else {}
        self._optimizer = build(
            "surrogate", self.dimensions, seed, options, Start(references=references, known=self._known)
        )

    def run(self, until: float) -> Trials:
        """Searches until the process has had `until` seconds of the processor."""
        trials = list(self._known)
        while self._optimizer.exhausted is None and time.process_time() < until:
            proposal = self._optimizer.ask()
            outcome = self._outcome(self._scores(proposal.genome, self._search))
            if proposal.needs_gradient:
                outcome = replace(outcome, slopes=self._slopes(proposal.genome))
            trials.append((proposal.genome, outcome))
            self._optimizer.tell(proposal.genome, outcome)
        return trials

    def release(self, trials: Trials, holdout: Slices) -> Mapping[str, Tensor]:
        """The weights of the winner."""
        ordered = [genome for genome, _ in sorted(trials, key=lambda trial: rank_key(trial[1]))]
        merges = [genome for genome in ordered if genome not in self._parents]
        floors = scores(self._bed.model, self._bed.base, holdout)
        held = [(genome, self._scores(genome, holdout)) for genome in merges[:_TOP]]
        passed = [(sum(v), genome) for genome, v in held if all(x <= f for x, f in zip(v, floors, strict=True))]
        return self._weights(min(passed, key=lambda pair: pair[0])[1] if passed else merges[0])

    def _weights(self, genome: Genome) -> Mapping[str, Tensor]:
        with torch.no_grad():
            return self._bands.weights(self._coefficients(genome))

    def _coefficients(self, genome: Genome) -> Tensor:
        values = torch.tensor([float(genome[d.key]) for d in self.dimensions])
        return values[self._places]

    def _scores(self, genome: Genome, slices: Slices) -> list[float]:
        return scores(self._bed.model, self._weights(genome), slices)

    def _outcome(self, values: Sequence[float]) -> Outcome:
        """Bits per byte of each slice as an outcome: higher is better, margins in units of the parents' spread."""
        margins = tuple((f - v) / s for v, f, s in zip(values, self._floors, self._scale, strict=True))
        short = sum(max(0.0, -margin) for margin in margins)
        mean = -sum(values) / len(values)
        return Outcome(False, short == 0, mean, short, margins, tuple(-v for v in values))

    def _slopes(self, genome: Genome) -> Slopes:
        """The gradient of each slice on three quarters of its items, and the scores on the rest."""
        rows = []
        for items in self._followed:
            leaf = self._coefficients(genome).requires_grad_()
            for at in range(0, len(items), 3 * _MICRO):
                part = items[at : at + 3 * _MICRO]
                share = sum(item.size for item in part) / sum(item.size for item in items)
                (bits(nats(self._bed.model, self._bands.weights(leaf), part), part) * share).backward()
            assert leaf.grad is not None
            rows.append(torch.zeros(len(self.dimensions)).index_add(0, self._places, -leaf.grad).double())
        checked = self._scores(genome, self._checked)
        beyond = zip(checked, self._checked_floors, self._scale, strict=True)
        margins = tuple((f - v) / s for v, f, s in beyond)
        return Slopes(
            tuple(torch.stack(rows).mean(0).tolist()),
            tuple(tuple((row / s).tolist()) for row, s in zip(rows, self._scale, strict=True)),
            (-sum(checked) / len(checked), margins),
        )


def _dimensions(bed: Testbed, tensors: bool) -> tuple[tuple[Dimension, ...], Tensor]:
    """The weights, and which of them each source's delta of each tensor takes, in the order of one band."""
    last = max(int(m[1]) for name in bed.base if (m := _LAYER.search(name)))
    names: dict[str, Dimension] = {}
    places = []
    for tensor in bed.base:
        found = _LAYER.search(tensor)
        # Tensors outside the layers: embeddings take the first layer's values, final norm and head the last one's.
        layer = found[1] if found else "0" if "embed" in tensor else str(last)
        for source in bed.sources:
            axis, where = ("tensors", tensor) if tensors else ("layers", layer)
            key = f"weight {source} {where}"
            low, high = (-1.0, 2.0) if tensors else (0.0, 1.0)
            place = {"sources": source, axis: where}
            dimension = Dimension(key, low, high, 0.5, gene="weight", place=place)
            names.setdefault(key, dimension)
            places.append(list(names).index(key))
    return tuple(names.values()), torch.tensor(places)
