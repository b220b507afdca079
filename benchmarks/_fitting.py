"""Adam under one budget of seconds, for all that can be trained: all weights, LoRA, coefficients of bands.

All get what a careful user would do. A quarter of each slice's search items is held out; these choose the step (early
stopping) and the learning rate. Three rates get a sixth of the seconds each, and the best of them the other half.
Floors are held by an augmented Lagrangian (Nocedal & Wright 2006, "Numerical Optimization", section 17.4) on the
items of a step, against the base's likelihood of the same items.

Seconds are those of the processor, with one thread: other work on the machine does not count.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from _bands import Bands
from _testbeds import Item, Testbed, bits, likelihoods, nats, scores
from torch import Tensor

Slices = Sequence[Sequence[Item]]

_STEP = 4
"""Items a slice in a step."""

_PENALTY, _PACE = 20.0, 0.2
"""The weight of a shortfall of 1 bit per byte, and the share of it by which a multiplier moves in a step."""

_CHECKED = 4
"""One of so many items is held out for early stopping."""


class Learner(Protocol):
    """What is trained: leaves of a model of which `nats` says how likely items are."""

    leaves: list[Tensor]

    def nats(self, items: Sequence[Item]) -> Tensor: ...

    def project(self) -> None:
        """Puts the leaves back into their range, after a step."""

    def weights(self) -> Mapping[str, Tensor]: ...


class Full:
    """All weights."""

    def __init__(self, bed: Testbed, start: Mapping[str, Tensor]) -> None:
        self._model = bed.model
        self._weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        self.leaves = list(self._weights.values())

    def nats(self, items: Sequence[Item]) -> Tensor:
        return nats(self._model, self._weights, items)

    def project(self) -> None:
        pass

    def weights(self) -> Mapping[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._weights.items()}


class Lora:
    """PEFT's adapters on all linear layers."""

    def __init__(self, bed: Testbed, start: Mapping[str, Tensor], rank: int = 8) -> None:
        from peft import LoraConfig, get_peft_model

        model = copy.deepcopy(bed.model)
        model.load_state_dict(dict(start), strict=False)
        model.tie_weights()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
            self._model: Any = get_peft_model(model, config)
        self._names = list(start)
        self.leaves = [p for p in self._model.parameters() if p.requires_grad]

    def nats(self, items: Sequence[Item]) -> Tensor:
        return nats(self._model, None, items)

    def project(self) -> None:
        pass

    def weights(self) -> Mapping[str, Tensor]:
        self._model.merge_adapter()
        state = {name.replace(".base_layer", ""): t for name, t in self._model.get_base_model().state_dict().items()}
        weights = {name: state[name].detach().clone() for name in self._names}
        self._model.unmerge_adapter()
        return weights


class Coefficients:
    """The coefficients of bands, each in [-1, 2]."""

    def __init__(self, bed: Testbed, bands: Bands, start: Tensor) -> None:
        self._model, self._bands = bed.model, bands
        self.leaves = [start.clone().requires_grad_()]

    def nats(self, items: Sequence[Item]) -> Tensor:
        return nats(self._model, self._bands.weights(self.leaves[0]), items)

    def project(self) -> None:
        self.leaves[0].data.clamp_(-1.0, 2.0)

    def weights(self) -> Mapping[str, Tensor]:
        with torch.no_grad():
            return self._bands.weights(self.leaves[0])


@dataclass
class Fitted:
    """The best by the items that were held out. `merit`: lower is better, floors first."""

    weights: Mapping[str, Tensor]
    merit: tuple[float, float]
    rate: float
    step: int
    steps: int = 0


@dataclass
class _Course:
    """One learner on its way with one rate."""

    learner: Learner
    rate: float
    base: Mapping[str, float]  # item -> the base's nats
    rng: random.Random
    adam: torch.optim.Optimizer = field(init=False)
    multipliers: list[float] = field(default_factory=list)
    taken: int = 0
    best: Fitted | None = None

    def __post_init__(self) -> None:
        self.adam = torch.optim.Adam(self.learner.leaves, lr=self.rate)

    def step(self, slices: Slices) -> None:
        """The augmented Lagrangian on a few items of each slice, and a step of Adam."""
        drawn = [self.rng.sample(list(items), min(_STEP, len(items))) for items in slices]
        nats = self.learner.nats([item for items in drawn for item in items])
        losses = [bits(part, items) for part, items in zip(nats.split([len(i) for i in drawn]), drawn, strict=True)]
        bases = [bits(torch.tensor([self.base[i.key] for i in items]), items) for items in drawn]
        self.multipliers = self.multipliers or [0.0] * len(slices)
        # L = mean loss + sum of max(0, lambda + c shortfall)^2 / (2 c)
        value = torch.stack(losses).mean()
        for number, (loss, base) in enumerate(zip(losses, bases, strict=True)):
            force = self.multipliers[number] + _PENALTY * (loss - base)
            value = value + force.clamp(min=0.0) ** 2 / (2 * _PENALTY)
            # lambda <- max(0, lambda + pace c shortfall)
            pushed = self.multipliers[number] + _PACE * _PENALTY * float(loss.detach() - base)
            self.multipliers[number] = max(0.0, pushed)
        self.adam.zero_grad()
        value.backward()
        self.adam.step()
        self.learner.project()
        self.taken += 1

    def check(self, slices: Slices, floors: Sequence[float], model: Any) -> None:
        weights = self.learner.weights()
        merit = judged(scores(model, weights, slices), floors)
        if self.best is None or merit < self.best.merit:
            self.best = Fitted(weights, merit, self.rate, self.taken)


def judged(values: Sequence[float], floors: Sequence[float]) -> tuple[float, float]:
    """How far floors are missed, then the mean in bits per byte."""
    short = sum(max(0.0, value - floor) for value, floor in zip(values, floors, strict=True))
    return short, sum(values) / len(values)


def split(search: Slices) -> tuple[Slices, Slices]:
    """Items for the steps, and those held out. Items come in an order drawn by chance."""
    counts = [max(1, len(items) // _CHECKED) for items in search]
    return [i[c:] for i, c in zip(search, counts, strict=True)], [i[:c] for i, c in zip(search, counts, strict=True)]


def fit(
    bed: Testbed, make: Callable[[], Learner], rates: Sequence[float], search: Slices, started: float, seconds: float
) -> Fitted:
    """Trains until `seconds` of the processor have passed since `started`, and returns the best."""
    trained, checked = split(search)
    base = {
        i.key: float(x) for items in search for i, x in zip(items, likelihoods(bed.model, bed.base, items), strict=True)
    }
    floors = [float(bits(torch.tensor([base[i.key] for i in items]), items)) for items in checked]
    every = max(1, round(len(checked[0]) / 8))
    courses = []

    def advance(course: _Course, until: float) -> None:
        while time.process_time() < until:
            course.step(trained)
            if course.taken % every == 0:
                course.check(checked, floors, bed.model)
        course.check(checked, floors, bed.model)

    # 1. Each rate for a sixth of what is left.
    began = time.process_time()
    left = started + seconds - began
    for number, rate in enumerate(rates):
        course = _Course(make(), rate, base, random.Random(1))
        course.check(checked, floors, bed.model)  # the start itself
        courses.append(course)
        advance(course, began + left * (number + 1) / (2 * len(rates)))
    # 2. The best rate for the rest.
    best = min(courses, key=_merit)
    advance(best, started + seconds)
    found = min(courses, key=_merit).best
    assert found is not None
    found.steps = sum(course.taken for course in courses)
    return found


def _merit(course: _Course) -> tuple[float, float]:
    assert course.best is not None
    return course.best.merit


_FEW = 4


def best_start(bed: Testbed, starts: Sequence[Mapping[str, Tensor]], search: Slices) -> int:
    """Which of these weights is best, floors first, by at most `_FEW` search items a slice."""
    few = [items[:_FEW] for items in search]
    floors = scores(bed.model, bed.base, few)
    return min(range(len(starts)), key=lambda number: judged(scores(bed.model, starts[number], few), floors))
