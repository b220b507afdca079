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

from evomerge.plugins import Table, check_target, found, loaded


def load(target: str) -> Any:
    """The object that `module:name` names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Parameter:
    """One parameter of merge methods: its scope, legal range, default, and the range a search starts with.

    `scope` is "source" (one value for each merged model) or "tensor" (one value for all of them).
    `default` None means that a recipe must give it. Flags and counts (`kind` bool, int) cannot be genes. `log`: a gene
    whose range starts above 0 is searched on a logarithmic scale unless it says otherwise. `banded`: a recipe may give
    a number for each band of a matrix (`recipe.bands`). `meaning`: what it does, in a line.
    """

    name: str
    scope: Literal["source", "tensor"]
    low: float = -math.inf
    high: float = math.inf
    default: float | bool | None = None
    kind: type = float
    init: float = 0.5
    log: bool = False
    banded: bool = False
    meaning: str = ""

    @property
    def argument(self) -> str:
        """The keyword by which a method's function takes it (`lambda` is reserved in Python)."""
        return "lambda_" if self.name == "lambda" else self.name


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


WEIGHT = Parameter("weight", "source", init=0.5, meaning="how much of it")
DENSITY = Parameter(
    "density",
    "source",
    low=0.0,
    high=1.0,
    default=1.0,
    init=0.6,
    meaning="the share of its delta's elements that is kept",
)
LAMBDA = Parameter("lambda", "tensor", default=1.0, init=1.0, meaning="what the merged delta is multiplied with")
T = Parameter("t", "tensor", low=0.0, high=1.0, init=0.5, meaning="where on the path: 0 the base, 1 the other model")
SCALE = Parameter("scale", "source", default=1.0, init=1.0, meaning="what the layers are multiplied with")

_FLAGS = {
    "normalize": "whether the sum is divided by that of the weights which take part",
    "normalize_weights": "whether the weights are divided by their sum",
    "rescale": "whether a thinned delta is scaled up to its size before",
    "nuslerp_flatten": "whether each tensor is one vector",
    "nuslerp_row_wise": "where it is not: whether vectors lie along the first dimension, not the last",
    "centred": "whether the directions are those of the difference from the mean of the deltas",
    "filter_wise": "whether each row has an angle of its own",
}


def flag(name: str, default: bool) -> Parameter:
    return Parameter(name, "tensor", default=default, kind=bool, meaning=_FLAGS.get(name, ""))


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


_ARITHMETIC = (WEIGHT, flag("normalize", False), LAMBDA)
_TIES = (WEIGHT, DENSITY, flag("normalize", True), flag("rescale", False), LAMBDA)
_DARE = (WEIGHT, DENSITY, flag("normalize", False), flag("rescale", True), LAMBDA)
_DELLA_EPSILON = Parameter(
    "epsilon",
    "source",
    low=0.0,
    high=0.5,
    default=0.15,
    init=0.15,
    meaning="how far the probability to be kept differs from the density, for the smallest and the largest elements",
)
_RAM_EPSILON = Parameter(
    "epsilon", "tensor", low=0.0, default=1e-5, init=1e-5, log=True, meaning="changes up to this size count as none"
)
_GAMMA = Parameter(
    "gamma",
    "source",
    low=0.0,
    high=1.0,
    default=0.01,
    init=0.01,
    meaning="the share of its largest elements that is left out",
)
_BREADCRUMBS = (WEIGHT, DENSITY, _GAMMA, flag("normalize", False), flag("rescale", False), LAMBDA)
_DELLA = (WEIGHT, DENSITY, _DELLA_EPSILON, flag("normalize", True), flag("rescale", True), LAMBDA)
_DELLA_CHECKED = ("density", "epsilon")
_DELLA_LINEAR = (WEIGHT, DENSITY, _DELLA_EPSILON, flag("normalize", False), flag("rescale", True), LAMBDA)
_NUSLERP = (WEIGHT, flag("nuslerp_flatten", True), flag("nuslerp_row_wise", False))
_EPS = Parameter(
    "eps", "tensor", low=0.0, default=1e-8, init=1e-8, log=True, meaning="added to lengths, so that none is 0"
)
_MULTISLERP = (WEIGHT, flag("normalize_weights", True), _EPS)
_KARCHER = (
    Parameter(
        "max_iter", "tensor", low=0, high=10_000, default=10, kind=int, meaning="the most steps of the iteration"
    ),
    Parameter("tol", "tensor", low=0.0, default=1e-5, init=1e-5, log=True, meaning="where the iteration stops"),
)
_TOPK = Parameter(
    "select_topk", "tensor", low=0.0, high=1.0, default=1.0, init=0.8, meaning="the share of elements that is merged"
)
_RAMPLUS = (
    Parameter("r", "tensor", default=0.1, init=0.1, meaning="how much elements of one source alone are amplified"),
    Parameter("alpha", "tensor", low=0.0, default=0.2, init=0.2, meaning="the most of the overlap that counts for it"),
    _RAM_EPSILON,
)
_NEARSWAP_T = Parameter("t", "tensor", low=0.0, init=1e-3, log=True, meaning="the most that an element moves")
BAND_ARITHMETIC = "band_arithmetic"
"""What recipes of a space call task arithmetic whose weight is per `bands`. mergekit has no such method."""

_ISOTROPY = Parameter(
    "isotropy",
    "tensor",
    low=0.0,
    high=1.0,
    default=0.0,
    init=0.0,
    meaning="how far the merged delta's singular values go towards their mean: 0 not at all, 1 all the way",
)

_CONSENSUS = (
    WEIGHT,
    Parameter(
        "threshold",
        "source",
        low=0.0,
        default=0.2,
        init=0.2,
        meaning="how large its change of an element must be, as a share of all others' together, to need it",
    ),
    Parameter("k", "tensor", low=0, default=2, kind=int, meaning="how many sources have to need an element"),
    flag("normalize", False),
    LAMBDA,
)
_STITCH = (WEIGHT, replace(DENSITY, init=0.1), LAMBDA)

_RANK = (
    WEIGHT,
    Parameter(
        "rank",
        "source",
        low=0.0,
        high=1.0,
        default=1.0,
        init=0.3,
        meaning="the share of its delta's largest singular directions that is kept",
    ),
    Parameter("gain", "tensor", default=1.0, init=1.0, meaning="what the kept directions are multiplied with"),
    flag("centred", False),
    flag("normalize", False),
    LAMBDA,
)
_TSV = (
    WEIGHT,
    Parameter(
        "part",
        "source",
        low=0.0,
        high=1.0,
        default=1.0,
        init=1.0,
        meaning="how much of its share of the singular directions it fills: the share is all, divided by the sources",
    ),
    LAMBDA,
)
_RESMERGE = (
    WEIGHT,
    Parameter("rho", "tensor", low=0.0, default=0.2, init=0.2, meaning="how much of the largest directions is added"),
    Parameter(
        "beta_min", "tensor", low=0.0, default=0.7, init=0.7, meaning="how much disagreement shrinks, at full agreement"
    ),
    Parameter("beta_max", "tensor", low=0.0, default=1.0, init=1.0, meaning="the same, at none"),
    LAMBDA,
)

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
        checked=_DELLA_CHECKED,
        differentiable=_SUMMED,
    )


_METHODS: Mapping[str, Method] = {
    "linear": Method(
        f"{_HERE}.linear:linear", (WEIGHT, flag("normalize", True)), "ordinary", differentiable=("weight",)
    ),
    "slerp": Method(f"{_HERE}.slerp:slerp", (T,), "endpoint", (1, 1), differentiable=("t",)),
    "nuslerp": Method(f"{_HERE}.nuslerp:nuslerp", _NUSLERP, "optional", (2, 2)),
    "multislerp": Method(f"{_HERE}.multislerp:multislerp", _MULTISLERP, "optional"),
    "karcher": Method(f"{_HERE}.karcher:karcher", _KARCHER, "ordinary"),
    "task_arithmetic": Method(
        f"{_HERE}.task_arithmetic:task_arithmetic", _ARITHMETIC, "subtracted", differentiable=_SUMMED
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
        (WEIGHT, _ISOTROPY, flag("normalize", False), LAMBDA),
        "subtracted",
        spectral=True,
        differentiable=("weight", "isotropy", "lambda"),
        own=True,
    ),
    "consensus": Method(
        f"{_HERE}.consensus:consensus", _CONSENSUS, "subtracted", (2, math.inf), differentiable=_SUMMED, own=True
    ),
    "stitch": Method(f"{_HERE}.stitch:stitch", _STITCH, "subtracted", differentiable=_SUMMED, own=True),
    "rank": Method(
        f"{_HERE}.rank:rank",
        _RANK,
        "subtracted",
        spectral=True,
        decomposed="all",
        differentiable=("weight", "gain", "lambda"),
        own=True,
    ),
    "tsv": Method(
        f"{_HERE}.tsv:tsv",
        _TSV,
        "subtracted",
        (2, math.inf),
        spectral=True,
        decomposed="parts",
        differentiable=_SUMMED,
        own=True,
    ),
    "resmerge": Method(
        f"{_HERE}.resmerge:resmerge",
        _RESMERGE,
        "subtracted",
        (2, math.inf),
        spectral=True,
        decomposed="first",
        differentiable=("weight", "rho", "beta_min", "beta_max", "lambda"),
        own=True,
    ),
    "ties": Method(f"{_HERE}.ties:ties", _TIES, "subtracted", differentiable=_SUMMED),
    "dare_linear": Method(f"{_HERE}.dare:dare_linear", _DARE, "subtracted", stochastic=True, differentiable=_SUMMED),
    "dare_ties": Method(f"{_HERE}.dare:dare_ties", _DARE, "subtracted", stochastic=True, differentiable=_SUMMED),
    "della": _della("della", _DELLA),
    "della_linear": _della("della_linear", _DELLA_LINEAR),
    "breadcrumbs": Method(f"{_HERE}.breadcrumbs:breadcrumbs", _BREADCRUMBS, "subtracted", differentiable=_SUMMED),
    "breadcrumbs_ties": Method(
        f"{_HERE}.breadcrumbs:breadcrumbs_ties", _BREADCRUMBS, "subtracted", differentiable=_SUMMED
    ),
    "model_stock": Method(
        f"{_HERE}.model_stock:model_stock", (flag("filter_wise", False),), "subtracted", (2, math.inf)
    ),
    "sce": Method(f"{_HERE}.sce:sce", (_TOPK,), "subtracted"),
    "ram": Method(f"{_HERE}.ram:ram", (_RAM_EPSILON,), "subtracted"),
    "ramplus_tl": Method(f"{_HERE}.ram:ramplus_tl", _RAMPLUS, "subtracted"),
    "arcee_fusion": Method(f"{_HERE}.arcee_fusion:arcee_fusion", (), "subtracted", (1, 1)),
    "nearswap": Method(f"{_HERE}.nearswap:nearswap", (_NEARSWAP_T,), "endpoint", (1, 1), differentiable=("t",)),
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
