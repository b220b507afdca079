"""Facts about licences that stand side by side in a merge. It is no legal advice."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.cards.licences import NO_DERIVATIVES, Licence
from evomerge.examine.checks.findings import Finding, note, warning


def compare_licences(licences: Mapping[str, Licence]) -> list[Finding]:
    """Names what stands side by side. `licences`: by model."""
    findings = []
    silent = [name for name, licence in licences.items() if licence.name is None]
    if silent:
        findings.append(note("licences", f"no model card of {', '.join(silent)} names a licence"))
    bound_by = dict.fromkeys(kind for licence in licences.values() for kind, _ in licence.terms)
    for kind in bound_by:
        bound = {n: says for n, licence in licences.items() for k, says in licence.terms if k == kind}
        free = [f"{n} ({licence.name})" for n, licence in licences.items() if licence.name and n not in bound]
        which = ", ".join(f"{n} ({licences[n].name})" for n in bound)
        beside = f"; beside it {', '.join(free)}" if free else ""
        level = warning if free or kind == NO_DERIVATIVES else note
        findings.append(level("licences", f"{kind}: the licence of {which} {next(iter(bound.values()))}{beside}"))
    names = {n: licence.name for n, licence in licences.items() if licence.name}
    if len(set(names.values())) > 1 and not bound_by:
        listed = ", ".join(f"{model} {name}" for model, name in names.items())
        findings.append(note("licences", f"they differ ({listed}); each asks to be named"))
    return findings
