"""Checks the order of the layers against the parents'."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from evomerge.examine.findings.finding import Evidence, Finding
from evomerge.examine.findings.origins import Origin
from evomerge.examine.findings.patient import Patient

_ALIKE = 0.5
"""A layer is of no parent below this cosine."""


def out_of_order(patient: Patient) -> Finding | None:
    """Layers that stand before ones that they follow in the parents."""
    origins = patient.origins
    if not origins:
        return None
    runs = _runs(origins)
    starts, ends = [first for first, _ in runs], [last for _, last in runs]
    back = any(b < a for a, b in itertools.pairwise(starts)) or any(b < a for a, b in itertools.pairwise(ends))
    same_depth = all(p.layers == patient.model.layers for p in patient.parents)
    displaced = [i for i, o in enumerate(origins) if o.layer != i]
    if not back and not (same_depth and displaced):
        return None
    order = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
    evidence = [Evidence("the layers are, in order, the parents' layers", order)]
    for i in displaced[:2]:
        o = origins[i]
        evidence.append(
            Evidence(f"cosine of layer {i} with layer {o.layer} of {o.parent}", o.cosine, {f"layer {i}": o.own})
        )
    return Finding(
        "layers-out-of-order",
        "layers are not in the order that the parents have them in",
        tuple(evidence),
        "the slices of the recipe stand in another order, or the tensors were numbered wrongly",
        "order the slices by their layer_range; slices that overlap are no problem",
        tensors=frozenset(n for n in patient.model.shapes if patient.model.place(n) in displaced),
    )


def _runs(origins: Sequence[Origin]) -> list[tuple[int, int]]:
    """The first and last layer of each run of consecutive layers."""
    runs: list[tuple[int, int]] = []
    for origin in origins:
        if runs and origin.layer == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], origin.layer
        else:
            runs.append((origin.layer, origin.layer))
    return runs
