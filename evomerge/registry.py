"""What evomerge can do, by name: one line each, the code behind a line is imported when it is first used.

A merge method is one function in a file of `evomerge/merge/methods/` plus one line in `METHODS`; an optimizer
is one class in a file of `evomerge/optimize/` plus one line in `OPTIMIZERS`. The shared conformance tests
read these tables, so a new line is tested as soon as it stands here.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


def load(target: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Parameter:
    """One parameter of merge methods: its scope, legal range, default, and the range a search starts with.

    `scope` is "source" (one value for each merged model) or "tensor" (one value for all of them).
    `default` None means that a recipe must give it. Flags (`kind` bool) cannot be genes.
    """

    name: str
    scope: Literal["source", "tensor"]
    low: float = -math.inf
    high: float = math.inf
    default: float | bool | None = None
    kind: type = float
    init: float = 0.5

    @property
    def argument(self) -> str:
        """The keyword by which a method's function takes it (`lambda` is reserved in Python)."""
        return "lambda_" if self.name == "lambda" else self.name


@dataclass(frozen=True)
class Method:
    """A merge method: where its function is, and what it takes.

    `base` tells what the base model is to it: "subtracted" (deltas from it are merged), "endpoint" (one of the
    two ends of a path), "ordinary" (a model like the others, or absent). `sources` is the least and the most
    number of models besides the base.
    """

    function: str
    parameters: tuple[Parameter, ...]
    base: Literal["subtracted", "endpoint", "ordinary"]
    sources: tuple[int, float] = (1, math.inf)
    stochastic: bool = False

    def parameter(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name), None)


WEIGHT = Parameter("weight", "source", init=0.5)
DENSITY = Parameter("density", "source", low=0.0, high=1.0, default=1.0, init=0.6)
LAMBDA = Parameter("lambda", "tensor", default=1.0, init=1.0)
T = Parameter("t", "tensor", low=0.0, high=1.0, init=0.5)
SCALE = Parameter("scale", "source", default=1.0, init=1.0)


def flag(name: str, default: bool) -> Parameter:
    return Parameter(name, "tensor", default=default, kind=bool)


_ARITHMETIC = (WEIGHT, flag("normalize", False), LAMBDA)
_TIES = (WEIGHT, DENSITY, flag("normalize", True), flag("rescale", False), LAMBDA)
_DARE = (WEIGHT, DENSITY, flag("normalize", False), flag("rescale", True), LAMBDA)
_HERE = "evomerge.merge.methods"

METHODS: Mapping[str, Method] = {
    "linear": Method(f"{_HERE}.linear:linear", (WEIGHT, flag("normalize", True)), "ordinary"),
    "slerp": Method(f"{_HERE}.slerp:slerp", (T,), "endpoint", (1, 1)),
    "task_arithmetic": Method(f"{_HERE}.task_arithmetic:task_arithmetic", _ARITHMETIC, "subtracted"),
    "ties": Method(f"{_HERE}.ties:ties", _TIES, "subtracted"),
    "dare_linear": Method(f"{_HERE}.dare:dare_linear", _DARE, "subtracted", stochastic=True),
    "dare_ties": Method(f"{_HERE}.dare:dare_ties", _DARE, "subtracted", stochastic=True),
    "passthrough": Method(f"{_HERE}.passthrough:passthrough", (SCALE,), "ordinary", (1, 1)),
}

OPTIMIZERS: Mapping[str, str] = {
    "cma-es": "evomerge.optimize.cma_es:CmaEs",
    "tpe": "evomerge.optimize.optuna_samplers:Tpe",
    "random": "evomerge.optimize.optuna_samplers:Random",
}

OBJECTIVES: Mapping[str, str] = {
    "mean": "evomerge.scoring.objectives:mean",
    "weighted_mean": "evomerge.scoring.objectives:weighted_mean",
    "geometric_mean": "evomerge.scoring.objectives:geometric_mean",
    "min": "evomerge.scoring.objectives:minimum",
}
