"""Checks of what a merge changed: lineage, coefficients, growth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from evomerge.examine.checks.lineage import UNRELATED_COSINE
from evomerge.examine.findings.finding import Evidence, Finding, listed
from evomerge.examine.findings.measures import Measured, Projection, project
from evomerge.examine.findings.patient import Patient
from evomerge.examine.findings.vocabulary import ordered_otherwise

BEYOND = 1.75
"""A source's delta that is in the merge more often than that is beyond what the source was trained to."""
REACH = 1.75
"""The same of all of them together, over the largest source's: three sources with a weight of 1 go to 1.5."""
TWICE = 0.1
"""How far from 2 the coefficient of an adapter that was applied twice can be: by rounding, and by other sources."""
EXPLAINED = 0.9
GREW = 1.5
"""A layer whose norm is so many times that of every parent grew."""
FAR, MOVED = 6.0, 0.1
"""A tensor is far from the base if its delta is so many times the largest of the sources', and such a share of the
tensor. Random masks of a density of 0.05 go to 4.5 times."""
STRANGER = 0.8
"""Below this cosine with every parent, and with all that they span, a tensor is not what the parents have there."""


def unrelated(patient: Patient) -> Finding | None:
    """A source that is no fine-tune of the base."""
    cosines: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    origin = ""
    for m in patient.compared(matrices=True):
        origin = m.parents[0]
        for i, name in enumerate(m.parents[1:], start=2):
            dot = m.gram[0, 0] + m.gram[0, i]
            cosines[name].append(float(dot / max(1e-30, m.norms[origin] * m.norms[name])))
            ratios[name].append(m.deltas[name] / max(1e-30, m.norms[origin]))
    found = {name: median(values) for name, values in cosines.items() if median(values) < UNRELATED_COSINE}
    if not found:
        return None
    evidence = [
        Evidence(f"cosine of {name} with {origin}, median over matrices", value) for name, value in found.items()
    ]
    evidence += [Evidence(f"size of the delta of {n}, of the weights of {origin}", median(ratios[n])) for n in found]
    return Finding(
        "unrelated-lineage",
        f"{listed(list(found))} {'is no fine-tune' if len(found) == 1 else 'are no fine-tunes'} of {origin}: "
        "they have nothing in common",
        tuple(evidence),
        "models that were trained from different beginnings do not average: their hidden units mean different things",
        "merge fine-tunes of one base; or align the models first",
        tensors=frozenset(patient.measured),
    )


def adapter_twice(patient: Patient) -> Finding | None:
    """A LoRA adapter whose change is in the merge two times, or more."""
    for source in patient.sources:
        if source.adapted is None:
            continue
        changed = [
            m for m in patient.compared(matrices=True) if m.name in source.adapted and m.name not in patient.rows
        ]
        fits = [p for p in (project([m]) for m in changed) if p is not None]
        values = [p.coefficients[source.name] for p in fits if source.name in p.coefficients]
        if len(values) < max(1, len(changed) // 2):
            continue
        times = round(median(values))
        near = [v for v in values if abs(v - times) < TWICE * times]
        if times >= 2 and len(near) > 0.8 * len(values) and median(p.explained for p in fits) > EXPLAINED:
            evidence = (
                Evidence(f"times that the change of {source.name} is in the merge", median(values)),
                Evidence("tensors of the adapter, and of them so", f"{len(values)}, {len(near)}"),
                Evidence("share of the merge's change that the sources explain", median(p.explained for p in fits)),
            )
            return Finding(
                "adapter-twice",
                f"the adapter of {source.name} was applied {times} times",
                evidence,
                "it was merged onto a model that had it already, or has a weight of that size",
                "apply it to the base that it was trained on; or give it a weight of 1 or less",
                severity="harmful",
                tensors=frozenset(m.name for m in changed),
            )
    return None


def beyond(patient: Patient) -> Finding | None:
    """Deltas that go further than the sources."""
    fit, of = _overall(patient)
    if fit is None:
        return None
    most = max(fit.coefficients, key=lambda name: fit.coefficients[name])
    if fit.coefficients[most] <= BEYOND and fit.reach <= REACH:
        return None
    deltas = {name: sum(m.deltas[name] ** 2 for m in of) ** 0.5 for name in of[0].deltas}
    evidence = (
        Evidence("times that each source's delta is in the merge", _numbers(fit.coefficients)),
        Evidence("norm of the merge's delta", sum(m.delta**2 for m in of) ** 0.5, deltas),
        *_said(patient),
    )
    return Finding(
        "beyond-the-sources",
        f"the merge goes {fit.reach:.1f} times as far from {of[0].parents[0]} as its furthest source",
        evidence,
        "lambda, or the sum of the weights, is too large: no source was trained that far away",
        "lower lambda or the weights until no coefficient is above 1; `evomerge path` shows where the loss turns",
        severity="harmful",
        tensors=frozenset(patient.measured),
    )


def _overall(patient: Patient) -> tuple[Projection | None, list[Measured]]:
    """The projection over all matrices that most parents have, and these."""
    groups: dict[tuple[str, ...], list[Measured]] = defaultdict(list)
    for m in patient.compared(matrices=True):
        if m.name not in patient.rows:
            groups[m.parents].append(m)
    if not groups:
        return None, []
    largest = max(groups.values(), key=len)
    return (project(largest), largest) if patient.base is not None else (None, largest)


def _said(patient: Patient) -> list[Evidence]:
    """The lambdas and weights of the recipe, if there is one."""
    if patient.recipe is None:
        return []
    document = patient.recipe.output
    given = {**document.parameters, **(document.all_slices[0].parameters if document.all_slices else {})}
    shown = {k: v for k, v in given.items() if k in ("lambda", "weight") and isinstance(v, int | float)}
    return [Evidence(f"{key} in the recipe", float(value)) for key, value in shown.items()]


def grew(patient: Patient) -> Finding | None:
    """Tensors that are larger than in every parent."""
    found = [m for m in patient.compared() if m.norm > GREW * max(m.norms.values()) and max(m.norms.values()) > 0]
    return _apart(
        patient,
        found,
        "norm-growth",
        "larger than in every parent",
        "the weights of the recipe add up to more than 1 there, or the tensor was scaled",
        "let the weights add up to 1 (`normalize: true`), or lower lambda",
    )


def strangers(patient: Patient) -> Finding | None:
    """Tensors that are like no parent's."""
    moved = {name for name in patient.rows if any(ordered_otherwise(patient, p.name) for p in patient.parents)}
    found = [m for m in patient.compared() if m.name not in moved and m.norm > 0 and is_stranger(m)]
    return _apart(
        patient,
        found,
        "like-no-parent",
        "like no parent's tensor of this name",
        "they were not merged from these parents, or were damaged or stored in another layout",
        "check that the parents are the right ones, and merge again",
    )


def is_stranger(m: Measured) -> bool:
    """Whether a matrix points elsewhere, or a tensor is far from the base where the sources are near to it."""
    if _points_elsewhere(m):
        return True
    far = max(m.deltas.values(), default=0.0)
    return len(m.parents) > 1 and m.delta > max(FAR * far, MOVED * m.norms[m.parents[0]])


def _points_elsewhere(m: Measured) -> bool:
    return len(m.shape) > 1 and m.likeness < STRANGER


def _apart(
    patient: Patient, found: Sequence[Measured], name: str, says: str, cause: str, change: str
) -> Finding | None:
    if not found:
        return None
    evidence = []
    for m in found[:3]:
        if name == "norm-growth":
            evidence.append(Evidence(f"norm of {m.name}", m.norm, m.norms))
        elif _points_elsewhere(m):
            evidence.append(Evidence(f"cosine with the parents, {m.name}", max(m.cosines.values()), m.cosines))
        else:
            evidence.append(Evidence(f"distance of {m.name} from {m.parents[0]}", m.delta, m.deltas))
    places = sorted({m.place for m in found if isinstance(m.place, int)})
    if places:
        evidence.append(Evidence("layers", f"{len(places)} of {patient.model.layers}"))
    return Finding(
        name,
        f"{listed([m.name for m in found])}: {says}",
        tuple(evidence),
        cause,
        change,
        severity="harmful",
        tensors=frozenset(m.name for m in found),
    )


def _numbers(values: dict[str, float] | object) -> str:
    assert isinstance(values, dict)
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items())
