"""What evomerge can do, by name: one line each, the code behind a line is imported when it is first used.

A merge method is one function in a file of `evomerge/merging/methods/` plus one line in `METHODS`; an optimizer
is one class in a file of `evomerge/optimize/` plus one line in `OPTIMIZERS`. The shared conformance tests
read these tables, so a new line is tested as soon as it stands here. Other packages add theirs by entry points
(docs/extend.md).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from typing import Any, Literal

from evomerge.method_parameters import (
    ARITHMETIC,
    BREADCRUMBS,
    CONSENSUS,
    DARE,
    DELLA,
    DELLA_CHECKED,
    DELLA_LINEAR,
    ISOTROPY,
    KARCHER,
    MULTISLERP,
    NEARSWAP_T,
    NUSLERP,
    RAM_EPSILON,
    RAMPLUS,
    RANK,
    RESMERGE,
    SCALE,
    STITCH,
    SVC,
    TIES,
    TOPK,
    TSV,
    T,
)
from evomerge.method_parameters import DENSITY as DENSITY
from evomerge.method_parameters import LAMBDA as LAMBDA
from evomerge.method_parameters import WEIGHT as WEIGHT
from evomerge.method_parameters import Parameter as Parameter
from evomerge.method_parameters import flag as flag
from evomerge.plugins import Table, check_target, found, loaded


def load(target: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


Decomposed = Literal["all", "parts", "first"]
"""Which singular directions of deltas methods need: all, the largest ones divided among the sources, the largest."""


def directions(kind: Decomposed, count: int, sources: int) -> int:
    """How many they are for each of so many sources, of a matrix that has `count`."""
    return {"all": count, "parts": max(1, count // sources), "first": 1}[kind]


@dataclass(frozen=True)
class Method:
    """A merge method: where its function is, and what it takes.

    `base` tells what the base model is to it: "subtracted" (deltas from it are merged), "optional" (so, where there is
    one), "endpoint" (one of the two ends of a path), "ordinary" (a model like the others, or absent). `sources` is the
    least and the most number of models besides the base. `check` finds what is wrong with one source's values of the
    parameters `checked` together (each alone is held to its range); None: nothing is. `differentiable` are
    the parameters in which the merged tensor has slopes, while masks, ranks and elected signs stay as they are.
    `spectral`: matrices are merged by their singular directions, so the last bits depend on the library for linear
    algebra, and on the processor. `decomposed`: which directions of the deltas it needs, where any. `own`: it is
    evomerge's own, and mergekit cannot run a recipe of it.
    """

    function: str
    parameters: tuple[Parameter, ...]
    base: Literal["subtracted", "optional", "endpoint", "ordinary"]
    sources: tuple[int, float] = (1, math.inf)
    stochastic: bool = False
    spectral: bool = False
    decomposed: Decomposed | None = None
    check: Callable[[Mapping[str, Any]], str | None] | None = None
    checked: tuple[str, ...] = ()
    differentiable: tuple[str, ...] = ()
    own: bool = False

    @property
    def merges_changes(self) -> bool:
        """Whether it merges changes of a base, and not models."""
        return self.base in ("subtracted", "optional")

    def parameter(self, name: str) -> Parameter | None:
        return next((p for p in self.parameters if p.name == name), None)


@dataclass(frozen=True)
class OptimizerPlugin:
    """An optimizer of another package.

    Attributes:
        optimizer: its class, as "module:Class"; it is called as those of `evomerge.optimize` are.
        declaration: what it can do, an `optimize.declarations.Declaration`; None: the defaults.
        options: its own options by name, each an `optimize.declarations.Option`.
    """

    optimizer: str
    declaration: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What a search space may name as its method: a method of `METHODS`, with the parameters that the name settles."""

    method: str
    settled: Mapping[str, float | bool] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those that are left to genes and `fixed`."""
        return tuple(p for p in METHODS[self.method].parameters if p.name not in self.settled)


def _della_range(values: Mapping[str, Any]) -> str | None:
    """DELLA keeps an element with a probability from density - epsilon to density + epsilon; densities of 0 and 1 draw
    nothing (mergekit 0.1.5, sparsify)."""
    density, epsilon = values["density"], values["epsilon"]
    if density <= 0 or density >= 1 or (density - epsilon > 0 and density + epsilon < 1):
        return None
    if epsilon >= 0.5:
        return f"epsilon is {epsilon:g}, and must be below 0.5"
    legal = f"above {epsilon:g} and below {1 - epsilon:g}, or 0 or 1"
    return f"density is {density:.8g}; with epsilon {epsilon:g} it must be {legal}"


BAND_ARITHMETIC = "band_arithmetic"
"""What recipes of a space call task arithmetic whose weight is per `bands`. mergekit has no such method."""

_HERE = "evomerge.merging.methods"
_SUMMED = ("weight", "lambda")
"""What scales deltas without choosing their elements."""


def _della(name: str, parameters: tuple[Parameter, ...]) -> Method:
    function = f"{_HERE}.della:{name}"
    return Method(
        function,
        parameters,
        "subtracted",
        stochastic=True,
        check=_della_range,
        checked=DELLA_CHECKED,
        differentiable=_SUMMED,
    )


_METHODS: Mapping[str, Method] = {
    "linear": Method(
        f"{_HERE}.linear:linear", (WEIGHT, flag("normalize", True)), "ordinary", differentiable=("weight",)
    ),
    "slerp": Method(f"{_HERE}.slerp:slerp", (T,), "endpoint", (1, 1), differentiable=("t",)),
    "nuslerp": Method(f"{_HERE}.nuslerp:nuslerp", NUSLERP, "optional", (2, 2)),
    "multislerp": Method(f"{_HERE}.multislerp:multislerp", MULTISLERP, "optional"),
    "karcher": Method(f"{_HERE}.karcher:karcher", KARCHER, "ordinary"),
    "task_arithmetic": Method(
        f"{_HERE}.task_arithmetic:task_arithmetic", ARITHMETIC, "subtracted", differentiable=_SUMMED
    ),
    BAND_ARITHMETIC: Method(
        f"{_HERE}.band_arithmetic:band_arithmetic",
        (replace(WEIGHT, banded=True),),
        "subtracted",
        spectral=True,
        differentiable=("weight",),
        own=True,
    ),
    "isotropy": Method(
        f"{_HERE}.isotropy:isotropy",
        ISOTROPY,
        "subtracted",
        spectral=True,
        differentiable=("weight", "isotropy", "lambda"),
        own=True,
    ),
    "svc": Method(f"{_HERE}.svc:svc", SVC, "subtracted", spectral=True, own=True),
    "consensus": Method(
        f"{_HERE}.consensus:consensus", CONSENSUS, "subtracted", (2, math.inf), differentiable=_SUMMED, own=True
    ),
    "stitch": Method(f"{_HERE}.stitch:stitch", STITCH, "subtracted", differentiable=_SUMMED, own=True),
    "rank": Method(
        f"{_HERE}.rank:rank",
        RANK,
        "subtracted",
        spectral=True,
        decomposed="all",
        differentiable=("weight", "gain", "lambda"),
        own=True,
    ),
    "tsv": Method(
        f"{_HERE}.tsv:tsv",
        TSV,
        "subtracted",
        (2, math.inf),
        spectral=True,
        decomposed="parts",
        differentiable=_SUMMED,
        own=True,
    ),
    "resmerge": Method(
        f"{_HERE}.resmerge:resmerge",
        RESMERGE,
        "subtracted",
        (2, math.inf),
        spectral=True,
        decomposed="first",
        differentiable=("weight", "rho", "beta_min", "beta_max", "lambda"),
        own=True,
    ),
    "ties": Method(f"{_HERE}.ties:ties", TIES, "subtracted", differentiable=_SUMMED),
    "dare_linear": Method(f"{_HERE}.dare:dare_linear", DARE, "subtracted", stochastic=True, differentiable=_SUMMED),
    "dare_ties": Method(f"{_HERE}.dare:dare_ties", DARE, "subtracted", stochastic=True, differentiable=_SUMMED),
    "della": _della("della", DELLA),
    "della_linear": _della("della_linear", DELLA_LINEAR),
    "breadcrumbs": Method(f"{_HERE}.breadcrumbs:breadcrumbs", BREADCRUMBS, "subtracted", differentiable=_SUMMED),
    "breadcrumbs_ties": Method(
        f"{_HERE}.breadcrumbs:breadcrumbs_ties", BREADCRUMBS, "subtracted", differentiable=_SUMMED
    ),
    "model_stock": Method(
        f"{_HERE}.model_stock:model_stock", (flag("filter_wise", False),), "subtracted", (2, math.inf)
    ),
    "sce": Method(f"{_HERE}.sce:sce", (TOPK,), "subtracted"),
    "ram": Method(f"{_HERE}.ram:ram", (RAM_EPSILON,), "subtracted"),
    "ramplus_tl": Method(f"{_HERE}.ram:ramplus_tl", RAMPLUS, "subtracted"),
    "arcee_fusion": Method(f"{_HERE}.arcee_fusion:arcee_fusion", (), "subtracted", (1, 1)),
    "nearswap": Method(f"{_HERE}.nearswap:nearswap", (NEARSWAP_T,), "endpoint", (1, 1), differentiable=("t",)),
    "passthrough": Method(f"{_HERE}.passthrough:passthrough", (SCALE,), "ordinary", (1, 1)),
}

_TIES_PAPER, _DARE_PAPER, _BREADCRUMBS_PAPER, _DELLA_PAPER = "2306.01708", "2311.03099", "2312.06795", "2406.11617"
_ARITHMETIC_PAPER, _RAM_PAPER = "2212.04089", "2601.13572"
PAPERS: Mapping[str, tuple[str, ...]] = {
    "linear": ("2203.05482",),
    "karcher": ("2603.04972",),
    "task_arithmetic": (_ARITHMETIC_PAPER,),
    BAND_ARITHMETIC: (_ARITHMETIC_PAPER,),
    "isotropy": ("2502.04959",),
    "svc": ("2602.05536",),
    "consensus": ("2405.07813",),
    "stitch": ("2408.13656",),
    "rank": ("2412.12153",),
    "tsv": ("2412.00081",),
    "resmerge": ("2606.02252",),
    "ties": (_TIES_PAPER,),
    "dare_linear": (_DARE_PAPER,),
    "dare_ties": (_DARE_PAPER, _TIES_PAPER),
    "della": (_DELLA_PAPER,),
    "della_linear": (_DELLA_PAPER,),
    "breadcrumbs": (_BREADCRUMBS_PAPER,),
    "breadcrumbs_ties": (_BREADCRUMBS_PAPER, _TIES_PAPER),
    "model_stock": ("2403.19522",),
    "sce": ("2408.07990",),
    "ram": (_RAM_PAPER,),
    "ramplus_tl": (_RAM_PAPER,),
}
"""Method -> the arXiv numbers of the papers that it is from; the others have none there."""

CORE_PAPERS = ("2509.17786",)
"""Those of Core Space."""


def _method(point: EntryPoint) -> Method:
    method = loaded(point, Method)
    check_target(method.function)
    return method


METHODS: Mapping[str, Method] = Table(_METHODS, lambda: found("methods", {*_METHODS, "uniform_soup"}, _method))


def runs_in_mergekit(method: str) -> bool:
    """Says whether mergekit can run recipes of a method: not those of our own, and of other packages."""
    return method in _METHODS and not _METHODS[method].own


CHOICES: Mapping[str, Choice] = Table(
    {
        **{name: Choice(name) for name in _METHODS if name not in ("passthrough", BAND_ARITHMETIC)},
        # The plain average of the sources (model soups, Wortsman et al. 2022, section 2); a weighted soup is `linear`.
        "uniform_soup": Choice("linear", {"weight": 1.0, "normalize": True}),
    },
    lambda: {name: Choice(name) for name in METHODS if name not in _METHODS},
)
"""What a search space may name as its method; recipes say the method behind it."""

_OPTIMIZERS: Mapping[str, str] = {
    "surrogate": "evomerge.optimize.bayesian:Surrogate",
    "cma-es": "evomerge.optimize.cma_es:CmaEs",
    "tpe": "evomerge.optimize.optuna_samplers:Tpe",
    "nsga-ii": "evomerge.optimize.genetic:NsgaII",
    "gradient": "evomerge.optimize.gradient:Gradient",
    "qmc": "evomerge.optimize.optuna_samplers:Qmc",
    "random": "evomerge.optimize.optuna_samplers:Random",
    "uniform-soup": "evomerge.optimize.warm_start:UniformSoup",
    "greedy-soup": "evomerge.optimize.warm_start:GreedySoup",
    "grid": "evomerge.optimize.grid:Grid",
    "path": "evomerge.optimize.path:Path",
    "coordinate": "evomerge.optimize.coordinate:Coordinate",
}

REMOVED_OPTIMIZERS: Mapping[str, str] = {"gp": "surrogate", "nsga-iii": "nsga-ii or tpe"}
"""Optimizers of earlier versions -> what to use instead."""


def _optimizer(point: EntryPoint) -> OptimizerPlugin:
    plugin = loaded(point, OptimizerPlugin)
    check_target(plugin.optimizer)
    return plugin


OPTIMIZER_PLUGINS: Mapping[str, OptimizerPlugin] = Table(
    {}, lambda: found("optimizers", {*_OPTIMIZERS, *REMOVED_OPTIMIZERS}, _optimizer)
)
OPTIMIZERS: Mapping[str, str] = Table(
    _OPTIMIZERS, lambda: {name: plugin.optimizer for name, plugin in OPTIMIZER_PLUGINS.items()}
)

OPTIMIZER_KEYS: Mapping[str, str] = {
    "name": "which optimizer (default: `surrogate`)",
    "seed": "of the optimizer and of the random masks (default: 0)",
    "asynchronous": "`true`: it is asked as soon as a worker is free, not a generation at a time (default: `false`)",
}
"""What every optimizer is given in a space file, besides options of its own: key -> what it says."""

PARETO = "pareto"
"""The objective that keeps a front of trade-offs instead of following one number."""

OBJECTIVES: Mapping[str, str] = {
    "mean": "evomerge.scoring.objectives:mean",
    "weighted_mean": "evomerge.scoring.objectives:weighted_mean",
    "geometric_mean": "evomerge.scoring.objectives:geometric_mean",
    "min": "evomerge.scoring.objectives:minimum",
    PARETO: "evomerge.scoring.objectives:weighted_mean",
}
"""The number that trials are shown and ordered by; in all but pareto it is what is searched for."""

PLAIN = ("task_arithmetic", "isotropy", "rank", "dare_linear", "linear", "ties", "dare_ties", "slerp")
"""Methods that give the parents back at the ends of their ranges, the plainest first."""

NEUTRAL: Mapping[str, float] = {"density": 1.0, "lambda": 1.0, "isotropy": 0.0, "rank": 1.0, "gain": 1.0}
"""The values at which a parameter of these methods changes nothing."""

PAGE = "evomerge.report.page.write:write_page"
"""What writes the page of a run. It stands above a study, which calls it at its end."""
