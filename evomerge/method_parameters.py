"""The parameters of the merge methods: what each is called, what it may be, what it does.

Tuples are the parameters of methods, in the order in which they are listed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal


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


ARITHMETIC = (WEIGHT, flag("normalize", False), LAMBDA)
TIES = (WEIGHT, DENSITY, flag("normalize", True), flag("rescale", False), LAMBDA)
DARE = (WEIGHT, DENSITY, flag("normalize", False), flag("rescale", True), LAMBDA)
DELLA_EPSILON = Parameter(
    "epsilon",
    "source",
    low=0.0,
    high=0.5,
    default=0.15,
    init=0.15,
    meaning="how far the probability to be kept differs from the density, for the smallest and the largest elements",
)
RAM_EPSILON = Parameter(
    "epsilon", "tensor", low=0.0, default=1e-5, init=1e-5, log=True, meaning="changes up to this size count as none"
)
GAMMA = Parameter(
    "gamma",
    "source",
    low=0.0,
    high=1.0,
    default=0.01,
    init=0.01,
    meaning="the share of its largest elements that is left out",
)
BREADCRUMBS = (WEIGHT, DENSITY, GAMMA, flag("normalize", False), flag("rescale", False), LAMBDA)
DELLA = (WEIGHT, DENSITY, DELLA_EPSILON, flag("normalize", True), flag("rescale", True), LAMBDA)
DELLA_CHECKED = ("density", "epsilon")
DELLA_LINEAR = (WEIGHT, DENSITY, DELLA_EPSILON, flag("normalize", False), flag("rescale", True), LAMBDA)
NUSLERP = (WEIGHT, flag("nuslerp_flatten", True), flag("nuslerp_row_wise", False))
EPS = Parameter(
    "eps", "tensor", low=0.0, default=1e-8, init=1e-8, log=True, meaning="added to lengths, so that none is 0"
)
MULTISLERP = (WEIGHT, flag("normalize_weights", True), EPS)
KARCHER = (
    Parameter(
        "max_iter", "tensor", low=0, high=10_000, default=10, kind=int, meaning="the most steps of the iteration"
    ),
    Parameter("tol", "tensor", low=0.0, default=1e-5, init=1e-5, log=True, meaning="where the iteration stops"),
)
TOPK = Parameter(
    "select_topk", "tensor", low=0.0, high=1.0, default=1.0, init=0.8, meaning="the share of elements that is merged"
)
RAMPLUS = (
    Parameter("r", "tensor", default=0.1, init=0.1, meaning="how much elements of one source alone are amplified"),
    Parameter("alpha", "tensor", low=0.0, default=0.2, init=0.2, meaning="the most of the overlap that counts for it"),
    RAM_EPSILON,
)
NEARSWAP_T = Parameter("t", "tensor", low=0.0, init=1e-3, log=True, meaning="the most that an element moves")
ISOTROPY = (
    WEIGHT,
    Parameter(
        "isotropy",
        "tensor",
        low=0.0,
        high=1.0,
        default=0.0,
        init=0.0,
        meaning="how far the merged delta's singular values go towards their mean: 0 not at all, 1 all the way",
    ),
    flag("normalize", False),
    LAMBDA,
)
SVC = (
    WEIGHT,
    Parameter(
        "alpha",
        "tensor",
        low=0.0,
        default=0.5,
        init=0.5,
        meaning="the least that a source counts along a direction; the less, the more a direction may grow",
    ),
    flag("normalize", False),
    LAMBDA,
)
CONSENSUS = (
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
STITCH = (WEIGHT, replace(DENSITY, init=0.1), LAMBDA)

RANK = (
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
TSV = (
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
RESMERGE = (
    WEIGHT,
    Parameter("rho", "tensor", low=0.0, default=0.2, init=0.2, meaning="how much of the largest directions is added"),
    Parameter(
        "beta_min", "tensor", low=0.0, default=0.7, init=0.7, meaning="how much disagreement shrinks, at full agreement"
    ),
    Parameter("beta_max", "tensor", low=0.0, default=1.0, init=1.0, meaning="the same, at none"),
    LAMBDA,
)
