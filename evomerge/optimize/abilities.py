"""What each optimizer can be asked for. Light: the checks of a study's files read it before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GRADIENT = "gradient"
"""The word of `warm_start` for a start along the gradient."""


@dataclass(frozen=True)
class Abilities:
    """`choices`: whether it takes genes that are choices; `objectives`: the most slices that it can trade off against
    each other (``objective: pareto``), 1 where it follows one number only; `begins`: whether it begins with the genome
    that it is given; `slopes`: whether it goes by the gradient alone, so that every gene, method and slice that counts
    must have one."""

    choices: bool = True
    objectives: int = 1
    begins: bool = True
    slopes: bool = False


ABILITIES: Mapping[str, Abilities] = {
    # It ranks by the hypervolume that a candidate adds, of which the cost grows exponentially with the objectives: an
    # ask after 400 trials takes 0.5 s with 6 of them, 6 s with 10.
    "tpe": Abilities(objectives=6),
    # With more objectives nearly everything is non-dominated, and domination tells nothing (Deb & Jain 2014, "An
    # evolutionary many-objective optimization algorithm", section II).
    "nsga-ii": Abilities(objectives=3),
    "gradient": Abilities(choices=False, slopes=True),
    "uniform-soup": Abilities(begins=False),
    "greedy-soup": Abilities(begins=False),
    "path": Abilities(begins=False),
}
"""What differs from the defaults."""


def abilities(name: str) -> Abilities:
    """Of one optimizer; one that says nothing takes choices, and follows one number."""
    return ABILITIES.get(name, Abilities())


def follows_slopes(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a search asks for slopes: throughout, or at its start."""
    return abilities(name).slopes or options.get("warm_start") == GRADIENT


def trading(objectives: int) -> list[str]:
    """The optimizers that can trade off so many objectives."""
    return [name for name, can in ABILITIES.items() if can.objectives >= max(2, objectives)]
