"""What each optimizer declares: what it can do, the options that it takes, and the models that it needs in the space.

Light: the checks of a study's files read it before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evomerge.errors import nearest, suggestion
from evomerge.plugins import Table
from evomerge.registry import OPTIMIZER_KEYS, OPTIMIZER_PLUGINS
from evomerge.space.reference_genomes import BASE, UNIFORM, ReferenceGenome, equal_labels

GRADIENT = "gradient"
"""The value of `warm_start` for a start along the gradient."""

UNWEIGHTED = "give it `weight: 0` (its floor still holds), or use `warm_start: gradient` of another optimizer"
"""How to mend a slice that the optimizer `gradient` cannot follow."""


@dataclass(frozen=True)
class Declaration:
    """What an optimizer can do.

    Attributes:
        choices: whether it takes genes that are choices.
        objectives: the most slices that it can trade off against each other (``objective: pareto``); 1: it follows one
            number.
        takes_start: whether it begins with the genome that it is given.
        needs_gradient: whether it follows gradients alone, so that every gene, method and slice that counts must have
            one.
    """

    choices: bool = True
    objectives: int = 1
    takes_start: bool = True
    needs_gradient: bool = False


_DECLARATIONS = {
    # It ranks by the hypervolume that a candidate adds. The cost of that grows exponentially with the objectives: an
    # ask after 400 trials takes 0.5 s with 6 of them, 6 s with 10.
    "tpe": Declaration(objectives=6),
    # With more objectives nearly everything is non-dominated, and domination tells nothing (Deb & Jain 2014, "An
    # evolutionary many-objective optimization algorithm", section II).
    "nsga-ii": Declaration(objectives=3),
    "gradient": Declaration(choices=False, needs_gradient=True),
    "uniform-soup": Declaration(takes_start=False),
    "greedy-soup": Declaration(takes_start=False),
    "path": Declaration(takes_start=False),
}

DECLARATIONS: Mapping[str, Declaration] = Table(
    _DECLARATIONS,
    lambda: {name: p.declaration for name, p in OPTIMIZER_PLUGINS.items() if isinstance(p.declaration, Declaration)},
)
"""What differs from the defaults."""


def declaration(name: str) -> Declaration:
    """The declaration of one optimizer."""
    return DECLARATIONS.get(name, Declaration())


def uses_gradient(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a search asks for gradients: throughout, or at its start."""
    return declaration(name).needs_gradient or options.get("warm_start") == GRADIENT


def trading(objectives: int) -> list[str]:
    """The optimizers that can trade off so many objectives."""
    return [name for name, declared in DECLARATIONS.items() if declared.objectives >= max(2, objectives)]


@dataclass(frozen=True)
class Option:
    """One option: its default, its type, its legal range (`above` excludes the low end), and the words that are legal,
    too. A text without words is a name. `meaning`: what it does, in a line."""

    default: int | float | str
    kind: type[int] | type[float] | type[bool] | type[str]
    low: float = 0.0
    high: float = 1.0
    above: bool = False
    words: tuple[str, ...] = ()
    meaning: str = ""

    @property
    def legal(self) -> str:
        if self.kind is bool:
            return " or ".join(["true or false", *map(repr, self.words)])
        if self.kind is str:
            return " or ".join(map(repr, self.words)) or "a name"
        noun = "a whole number" if self.kind is int else "a number"
        span = f"{'above' if self.above else 'from'} {self.low:g} to {self.high:g}"
        return " or ".join([*map(repr, self.words), f"{noun} {span}"])

    def read(self, value: object) -> int | float | str | None:
        """The value in its own type, or None where it is not legal."""
        if self.kind is bool and not isinstance(value, str):
            return value if isinstance(value, bool) else None
        if isinstance(value, str):
            named = self.kind is str and not self.words and value != ""
            return value if named or value in self.words else None
        if self.kind is str or isinstance(value, bool) or not isinstance(value, int | float):
            return None
        inside = self.low <= value <= self.high and not (self.above and value == self.low)
        if not inside or (self.kind is int and value != int(value)):
            return None
        return self.kind(value)


WARM_START = Option(
    True, bool, meaning="whether reference genomes are scored first, and the search begins at the best of them"
)
WARM_START_OR_GRADIENT = replace(
    WARM_START,
    words=(GRADIENT,),
    meaning=f"{WARM_START.meaning}; with `gradient`, steps along the gradient come first",
)
TOLERANCE = Option(
    0.01, float, 0.0, 1.0, above=True, meaning="the finest step, as a share: of the line, or of each gene's range"
)
STARTUP = Option(
    10, int, 1, 100_000, meaning="random trials before the first model; outcomes that are known before the search count"
)
# few, as budgets are small (of 10, 20 and 30, the best after 120 trials)
GENERATION = Option(10, int, 4, 10_000, meaning="trials in a generation")

_OPTIONS: dict[str, Mapping[str, Option]] = {
    "surrogate": {
        "population": Option(
            "auto",
            int,
            1,
            1_000,
            words=("auto",),
            meaning="trials that are asked at once (`auto`: one for each worker)",
        ),
        "startup": Option(8, int, 2, 1_000, meaning="outcomes that are known before the first model is made"),
        "warm_start": WARM_START_OR_GRADIENT,
    },
    "cma-es": {
        "population": Option(
            "auto",
            int,
            3,
            10_000,
            words=("auto",),
            meaning="trials in a generation (`auto`: 4 + 3 ln of the number of coordinates, or a few more for all "
            "workers to have work)",
        ),
        # pycma uses at most a third
        "sigma": Option(
            "auto",
            float,
            0.0,
            1.0,
            above=True,
            words=("auto",),
            meaning="the initial standard deviation as a share of each gene's range (`auto`: 0.2, or less where "
            "samples around the start would lie near a reference that is worse)",
        ),
        "repeats": Option(
            0, int, 0, 1_000, meaning="a generation's best that are scored once more before the distribution moves"
        ),
        "warm_start": WARM_START_OR_GRADIENT,
    },
    "tpe": {"startup": STARTUP, "warm_start": WARM_START_OR_GRADIENT},
    "nsga-ii": {"population": GENERATION, "warm_start": WARM_START},
    "gradient": {
        "steps": Option(60, int, 1, 100_000, meaning="the most steps"),
        "rate": Option(
            0.05, float, 0.0, 1.0, above=True, meaning="the first step, as a share of each gene's range; it shrinks"
        ),
        "slack": Option(
            0.0,
            float,
            0.0,
            1.0,
            meaning="how far above each floor it aims, as a share of the spread between base and sources",
        ),
        "patience": Option(
            15, int, 1, 100_000, meaning="the most steps without gain on the items that are left for checking"
        ),
    },
    "grid": {
        "levels": Option(3, int, 2, 1000, meaning="values of each number, both ends among them"),
        "tie": Option(
            "auto",
            str,
            words=("auto", "none", "layers", "modules", "layers+modules", "all"),
            meaning="the axes over which a gene has one value; `all`: over sources, too",
        ),
    },
    "path": {
        "points": Option(11, int, 2, 1000, meaning="points of the line, ends included"),
        "begin": Option("base", str, meaning="where the line begins: `base`, a source, `uniform`, or as `equal 0.4`"),
        "end": Option("uniform", str, meaning="where it leads; `sources`: one line to each source"),
        "reach": Option(
            "edge",
            float,
            0.0,
            100.0,
            above=True,
            words=("edge",),
            meaning="how far it goes, in times of the way to its end; `edge`: as far as the space's ranges allow",
        ),
        "tolerance": TOLERANCE,
    },
    "coordinate": {
        "by": Option(
            "sources", str, words=("sources", "layers", "genes", "each"), meaning="the genes that move together"
        ),
        "step": Option(0.2, float, 0.0, 1.0, above=True, meaning="the first step, as a share of each gene's range"),
        "tolerance": TOLERANCE,
        "warm_start": WARM_START,
    },
}

OPTIONS: Mapping[str, Mapping[str, Option]] = Table(
    _OPTIONS, lambda: {name: plugin.options for name, plugin in OPTIMIZER_PLUGINS.items()}
)
"""Optimizer name -> the options that it takes, which are keyword arguments of its class."""


class OptionError(ValueError):
    """One option is wrong. `key`: its name. `problem`, `mend`: the parts of a message that names the file, too."""

    def __init__(self, key: str, problem: str, mend: str) -> None:
        self.key, self.problem, self.mend = key, problem, mend
        super().__init__(f"{key}: {problem}; {mend}")


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of the optimizer `name` (without `name` and `seed`), checked and with the defaults filled in."""
    declared = OPTIONS.get(name, {})
    checked: dict[str, Any] = {key: option.default for key, option in declared.items()}
    for key, value in options.items():
        if key not in declared:
            legal = [*declared, *OPTIMIZER_KEYS]
            mend = suggestion(key, legal) if declared or nearest(key, legal) else "remove it"
            raise OptionError(key, f"{name} takes no such option (got {value!r})", mend)
        read = declared[key].read(value)
        if read is None:
            raise OptionError(key, f"{value!r} is not legal for {name}", f"give {declared[key].legal}")
        checked[key] = read
    return checked


SOURCES = "sources"
"""The end of a `path` in place of one label: every source."""

_MEND = (
    "search `method: task_arithmetic` (or linear, which reaches the sources and their average) with "
    "`weight: {low: 0, high: 1, per: [sources]}`, and let density and lambda, where they vary, reach 1"
)


def check_reference_genomes(
    name: str, options: Mapping[str, Any], sources: Sequence[str], references: Mapping[str, ReferenceGenome]
) -> None:
    """Raises OptionError where the optimizer `name` needs the genome of a model, and the space does not hold it.
    `references`: the genomes that it holds, by label."""
    if name in ("uniform-soup", "greedy-soup") and len(sources) == 1:
        raise OptionError("name", f"{name} has nothing to average with one source", "add sources, or use the path")
    wanted: dict[str, str] = {}
    if name in ("uniform-soup", "greedy-soup"):
        wanted = {"name": UNIFORM}
    elif name == "path":
        checked = check_options(name, options)
        wanted = {key: str(checked[key]) for key in ("begin", "end")}
    legal = [BASE, *sources, UNIFORM, *equal_labels()]
    for key, label in wanted.items():
        if label not in legal and (label != SOURCES or key == "begin"):
            raise OptionError(key, f"{name} knows no model {label!r}", suggestion(label, legal))
        if any(model not in references for model in (sources if label == SOURCES else [label])):
            phrase = {BASE: "the base", UNIFORM: "the uniform average", SOURCES: "the sources"}.get(label, label)
            available = [model for model in legal if model in references]
            mend = (
                f"name ends that it holds: {', '.join(available)}" if name == "path" and len(available) > 1 else _MEND
            )
            raise OptionError(key, f"{name} goes by {phrase}, which the space does not hold", mend)
    if name == "path" and SOURCES not in wanted.values():
        begin, end = (references[label].genome for label in wanted.values())
        if begin == end:
            raise OptionError("end", f"the path begins and ends with the same model, {wanted['begin']}", "name another")
