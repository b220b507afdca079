"""Builds an optimizer by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import suggestion
from evomerge.optimize.base import Optimizer, Start
from evomerge.optimize.declarations import GRADIENT, check_options, declaration, trading
from evomerge.optimize.gradient_start import GradientStart
from evomerge.optimize.warm_start import WarmStart
from evomerge.registry import OPTIMIZERS, load
from evomerge.types import Dimension


def build(
    name: str,
    dimensions: Sequence[Dimension],
    seed: int,
    options: Mapping[str, Any],
    start: Start | None = None,
    asynchronous: bool = False,
    objectives: int = 1,
    num_workers: int = 1,
) -> Optimizer:
    """Builds the optimizer that the registry knows as `name`.

    With the option `warm_start`, reference genomes are proposed before it, if there are some (`optimize.warm_start`);
    with "gradient", steps along the gradient are (`optimize.gradient_start`).

    Args:
        start: what is known before the search.
        asynchronous: whether outcomes are told in any order.
        objectives: how many slices are traded off (`Outcome.values`); 1: it follows `Outcome.objective`.
        num_workers: how many candidates can be scored at a time. A population of `auto` is a multiple of it.

    Raises:
        ValueError: the name or an option is wrong, or the optimizer cannot trade off that many objectives.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"there is no optimizer {name!r}; {suggestion(name, OPTIMIZERS)}")
    if objectives > declaration(name).objectives:
        raise ValueError(f"{name} cannot trade off {objectives} objectives; use {' or '.join(trading(objectives))}")
    checked = check_options(name, options)
    warm, start = checked.pop("warm_start", False), start or Start()

    def make_in(dimensions: Sequence[Dimension], start: Start) -> Optimizer:
        common = {"asynchronous": asynchronous, "objectives": objectives, "num_workers": num_workers}
        optimizer: Optimizer = load(OPTIMIZERS[name])(dimensions, seed, start=start, **common, **checked)
        return optimizer

    def make(start: Start) -> Optimizer:
        return make_in(dimensions, start)

    if warm == GRADIENT:
        return GradientStart(dimensions, seed, make_in, start=start, asynchronous=asynchronous)
    if not (warm and start.references):
        return make(start)
    return WarmStart(dimensions, seed, make, start=start, asynchronous=asynchronous)
