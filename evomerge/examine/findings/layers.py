"""Checks the order of the layers against the parents'."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from evomerge.examine.findings.deltas import is_stranger
from evomerge.examine.findings.finding import Evidence, Finding, listed
from evomerge.examine.findings.origins import Origin, other_layer
from evomerge.examine.findings.patient import Patient

_LOOKED = 8
"""So many strange tensors are looked for in other layers."""
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
    asked = _asked(patient) == [o.layer for o in origins]
    numbered = "" if asked else ", or the tensors were numbered wrongly"
    return Finding(
        "layers-out-of-order",
        "layers are not in the order that the parents have them in",
        tuple(evidence),
        f"the slices of the recipe stand in another order{numbered}",
        "order the slices by their layer_range; slices that overlap are no problem",
        severity="suspect" if asked else "broken",
        tensors=frozenset(n for n in patient.model.shapes if patient.model.place(n) in displaced),
    )


def _asked(patient: Patient) -> list[int] | None:
    """The layers in the order in which a recipe stacks them by their numbers; None where it does not."""
    output = patient.recipe.output if patient.recipe else None
    if output is None or output.method != "passthrough" or output.modules:
        return None
    ranges = [one.layers for slice_ in output.slices for one in slice_.inputs]
    return [layer for span in ranges if span is not None for layer in range(*span)] if all(ranges) else None


def cut_off(patient: Patient) -> Finding | None:
    """Layers that are stored, and that the configuration does not count."""
    model = patient.model
    behind = {at[0] for name in model.shapes if (at := model.stack.behind(name)) is not None}
    deeper = [p for p in patient.parents if p.layers > model.layers]
    if not behind or len(deeper) < len(patient.parents) or not deeper:  # layers for next-token prediction are behind
        return None
    stored = model.layers + len(behind)
    return Finding(
        "layers-cut-off",
        f"config.json counts {model.layers} layers, and {stored} are stored: the last ones are never run",
        (Evidence("layers in config.json", model.layers, {p.name: p.layers for p in deeper}),),
        "config.json is of another model, or was edited",
        f"set num_hidden_layers to {stored}",
    )


def misplaced(patient: Patient) -> Finding | None:
    """Single tensors that are those of other layers."""
    model, found, evidence = patient.model, [], []
    strange = [m for m in patient.compared() if isinstance(m.place, int) and m.norm > 0 and is_stranger(m)]
    for m in strange[:_LOOKED]:
        assert isinstance(m.place, int)
        layer = patient.origins[m.place].layer if patient.origins else m.place
        at = other_layer(model, m.name, patient.parents, layer)
        if at is not None:
            found.append(m.name)
            evidence.append(Evidence(f"{m.name} is that of", f"layer {at[1]} of {at[0]}"))
    if not found:
        return None
    parts = {model.stack.part(name) for name in found}
    names = [m.name for m in strange if model.stack.part(m.name) in parts]
    return Finding(
        "tensors-of-other-layers",
        f"{listed(names)}: what the parents have in other layers",
        tuple(evidence[:4]),
        "the tensors were numbered wrongly when they were merged, renamed or converted",
        "put them back in their layers, or merge again",
        tensors=frozenset(names),
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
