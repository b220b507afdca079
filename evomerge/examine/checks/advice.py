"""Which methods and genes to try with these models, each with its reason. No rule here is a prediction of a score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.checkpoints.samples.deltas import Deltas
from evomerge.checkpoints.samples.sums import Estimate
from evomerge.checkpoints.samples.training import FINE_TUNED, LARGE
from evomerge.examine.checks.signals import mean

MOST_GROUPS = 8
_TRIALS_A_GENE = 8
"""Evaluations that a searched number needs before it gains more than its noise: docs/optimizers.md starts with few."""
_CANCELS, _ALIKE, _UNEVEN, _UNEQUAL, _SPREAD = 0.03, 0.6, 1.5, 2.0, 0.3

START_APART = 0.2
"""The weight to start from where sources are far apart."""


@dataclass(frozen=True)
class Advice:
    """Something to try: as the keys of a search space, and why."""

    what: str
    why: str


def groups_for(sources: int, layers: int, trials: int) -> int:
    """Layer groups with a weight for each source that so many trials can search."""
    return max(1, min(layers, MOST_GROUPS, trials // (_TRIALS_A_GENE * sources)))


def are_apart(deltas: Deltas) -> bool:
    """Whether the sources are so far from each other that their average loses what they gained."""
    spread = deltas.spread() if len(deltas.sources) > 1 else None
    return spread is not None and spread.value > _SPREAD


WEIGHTS_FIRST = Advice(
    "space: weights first, and its winner as a model of this path (--from RUN)",
    "a layer was trained on what the layer before it gives: a stack is rarely better than a merge of the weights",
)
"""Of a path."""


def advice(deltas: Deltas, layers: int, trials: int = 100, blocks: bool = False) -> list[Advice]:
    """What to try, the first thing first.

    Args:
        deltas: of the sources that descend from the base.
        layers: of the base.
        trials: the budget that the number of genes is for.
        blocks: whether the groups of layers are blocks that move (`space: both`).
    """
    sources = deltas.sources
    if not sources:
        return []
    sizes = {s: size for s in sources if (size := deltas.mean_size(s)) is not None}
    groups = groups_for(len(sources), layers, trials)
    if len(sources) == 1:
        found = [Advice("method: slerp, t per layers", "one source: how far to go from the base is the one question")]
    else:
        key, called = ("blocks", "blocks") if blocks else ("layers", "layer groups")
        per = f"weight per sources and layers, {key}: {groups}" if groups > 1 else "weight per sources"
        count = f"{len(sources)} sources x {groups} {called} = {len(sources) * groups} numbers"
        found = [Advice(f"method: task_arithmetic, {per}", f"{count}, which {trials} trials can search")]
    spread = deltas.spread()
    if spread is not None and are_apart(deltas):
        measured = f"all 17 equal-weight merges with more than {_SPREAD:g} (docs/check.md) lost more than was gained"
        found.append(Advice(f"weight: {{init: {START_APART:g}}}, from 0 on", f"spread {spread.value:.2f}: {measured}"))
    found += [*_by_size(sizes), *_by_conflict(deltas)] if len(sources) > 1 else []
    largest = max((size.value for size in sizes.values()), default=0.0)
    if largest >= LARGE:
        found.append(
            Advice("no dare_linear, no dare_ties", f"a mean change of {largest:.2g} is too large to drop and rescale")
        )
    elif 0 < largest <= FINE_TUNED:
        why = f"deltas are small (mean change at most {largest:.2g}): most elements can be dropped, the rest rescaled"
        found.append(Advice("method: dare_linear, density from 0.2", why))
    found += _by_layers(deltas, can_freeze=not blocks)
    return found


def _by_size(sizes: Mapping[str, Estimate]) -> list[Advice]:
    """Equal weights are not equal shares where one source moved much further than another."""
    moved = {source: size.value for source, size in sizes.items() if size.value > 0}
    if len(moved) < 2:
        return []
    most, least = max(moved, key=lambda s: moved[s]), min(moved, key=lambda s: moved[s])
    if moved[most] < _UNEQUAL * moved[least]:
        return []
    why = f"its delta is {moved[most] / moved[least]:.1f} times that of {least}: equal weights are mostly {most}"
    return [Advice(f"a lower weight for {most}", why)]


def by_chance(sources: int) -> float:
    """The share of |delta| that cancels where so many deltas of one size, normal and independent, are added."""
    return 1 - 1 / math.sqrt(sources)


def _by_conflict(deltas: Deltas) -> list[Advice]:
    cosine = mean([deltas.cosine(a, b) for i, a in enumerate(deltas.sources) for b in deltas.sources[i + 1 :]])
    lost, chance = deltas.cancelled(), by_chance(len(deltas.sources))
    if lost is not None and lost.value > chance + _CANCELS:
        why = f"{lost.value:.0%} of the deltas cancels where they are added, {chance:.0%} would by chance"
        return [Advice("method: ties, density from 0.1 per sources", f"{why}: ties lets one sign win at each element")]
    if cosine is not None and cosine.value > _ALIKE:
        why = f"deltas point the same way (cosine {cosine.value:.2f}): the average keeps what they share"
        return [Advice("method: linear or model_stock", why)]
    return []


def _by_layers(deltas: Deltas, can_freeze: bool) -> list[Advice]:
    """Genes per layers pay where layers differ; layers that nobody changed need none."""
    layers = sorted({tensor.layer for tensor in deltas.tensors if tensor.layer is not None})
    found = []
    sizes: dict[int, Estimate] = {}
    for layer in layers:
        size = mean([deltas.relative(source, deltas.of(layer)) for source in deltas.sources])
        if size is not None:
            sizes[layer] = size
    still = [layer for layer, size in sizes.items() if size.value == 0]
    if can_freeze and still and len(still) < len(layers):
        found.append(Advice(f"freeze: {{layers: {still}}}", "no source changed a sampled element of these layers"))
    moved = {layer: size.value for layer, size in sizes.items() if size.value > 0}
    if len(moved) > 1 and max(moved.values()) > _UNEVEN * min(moved.values()):
        most, least = max(moved, key=lambda i: moved[i]), min(moved, key=lambda i: moved[i])
        why = f"layer {most} moved {moved[most]:.3g} of its norm, layer {least} {moved[least]:.3g}"
        found.append(Advice("weight per layers", why))
    return found
