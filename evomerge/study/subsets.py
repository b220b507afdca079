"""The subsets of a pool that a search tries first, by the scores of its references (`scoring.stats.subsets`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.scoring.item_noise import Scored, item_weights
from evomerge.scoring.slices import SliceInfo, SuiteInfo
from evomerge.scoring.stats.subsets import SliceGains, subsets
from evomerge.space.reference_genomes import BASE


def propose(info: SuiteInfo, sources: Sequence[str], scored: Mapping[str, Scored]) -> dict[str, list[str]]:
    """Subsets of the sources, by label. `scored`: the base and the sources, by label."""
    if not scored.keys() >= {BASE, *sources}:
        return {}
    counting = [slice_ for slice_ in info.slices.values() if not slice_.is_measure and _counts(slice_)]
    found = subsets([_gains(slice_, sources, scored) for slice_ in counting])
    named = [(reason, [sources[i] for i in members]) for reason, members in found]
    return {f"{reason} {' + '.join(names)}": names for reason, names in named}


def _counts(info: SliceInfo) -> bool:
    return info.weight > 0 or info.floor is not None


def _gains(info: SliceInfo, sources: Sequence[str], scored: Mapping[str, Scored]) -> SliceGains:
    """What the sources gain over the base on a slice. Where its score is no mean of its items, the score is one."""
    value = {label: scored[label].scores[info.name].value for label in (BASE, *sources)}
    scores = np.array([value[source] - value[BASE] for source in sources])
    weights = item_weights(info, scored[BASE])
    if weights is None:
        return SliceGains(info.weight, scores, scores[:, None], np.ones(1))
    units = {label: weights.units(scored[label].items.get(info.name, {})) for label in value}
    items = np.stack([units[source] - units[BASE] for source in sources]) * weights.kind.sign
    return SliceGains(info.weight, scores, np.nan_to_num(items, nan=0.0, posinf=0.0, neginf=0.0), weights.shares)
