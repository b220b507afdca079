"""Builds an optimizer by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import suggestion
from evomerge.optimize.base import Optimizer, Start
from evomerge.optimize.declarations import GRADIENT, abilities, check_options, trading
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
    hands: int = 1,
) -> Optimizer:
    """The optimizer that the registry knows as `name`. Raises ValueError where the name or an option is wrong, or it
    cannot trade off that many objectives (`Outcome.values`; 1: it follows `Outcome.objective`). `hands` is how many
    candidates can be scored at a time, which an optimizer with a free choice adapts its generations to.

    With the option `warm_start`, and landmarks to start from, these are proposed before it (`optimize.warm_start`);
    where it is "gradient", steps along the slopes of outcomes are (`optimize.gradient_start`).
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"there is no optimizer {name!r}; {suggestion(name, OPTIMIZERS)}")
    if objectives > abilities(name).objectives:
        raise ValueError(f"{name} cannot trade off {objectives} objectives; use {' or '.join(trading(objectives))}")
    checked = check_options(name, options)
    warm, start = checked.pop("warm_start", False), start or Start()

    def made(dimensions: Sequence[Dimension], start: Start) -> Optimizer:
        about = {"asynchronous": asynchronous, "objectives": objectives, "hands": hands}
        optimizer: Optimizer = load(OPTIMIZERS[name])(dimensions, seed, start=start, **about, **checked)
        return optimizer

    def make(start: Start) -> Optimizer:
        return made(dimensions, start)

    if warm == GRADIENT:
        return GradientStart(dimensions, seed, made, start=start, asynchronous=asynchronous)
    if not (warm and start.landmarks):
        return make(start)
    return WarmStart(dimensions, seed, make, start=start, asynchronous=asynchronous)
