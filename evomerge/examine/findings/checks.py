"""The checks in the order in which they are asked: what a finding explains is not looked at again.

A new check is a function from a `Patient` to a `Finding` or None, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from evomerge.examine.findings import deltas, layers, settings, vocabulary, weights
from evomerge.examine.findings.finding import SEVERITIES, Finding
from evomerge.examine.findings.patient import Patient

Check = Callable[[Patient], Finding | None]

CHECKS: tuple[Check, ...] = (
    weights.overflow,
    weights.not_finite,
    weights.zeroed,
    weights.head,
    settings.configuration,
    vocabulary.permuted,
    vocabulary.unfilled,
    layers.cut_off,
    layers.out_of_order,
    weights.codes,
    weights.swapped,
    deltas.unrelated,
    layers.misplaced,
    deltas.adapter_twice,
    deltas.beyond,
    deltas.grew,
    deltas.strangers,
    settings.rope_apart,
    settings.end_of_text,
    settings.template,
)
"""Of headers, settings and one pass over the tensors: no forward pass."""


def examined(patient: Patient, checks: Sequence[Check] = CHECKS) -> tuple[Finding, ...]:
    """What the checks find, the worst first."""
    found: list[Finding] = []
    for check in checks:
        finding = check(patient)
        if finding is not None:
            found.append(finding)
            patient = replace(patient, explained=patient.explained | finding.tensors)
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
