"""Checks of embeddings and head, row by row against the parents'."""

from __future__ import annotations

from evomerge.escape import quoted
from evomerge.examine.findings.finding import Evidence, Finding, listed
from evomerge.examine.findings.patient import Patient
from evomerge.examine.findings.rows import Rows

_MATCHED = 0.5
"""Rows are permuted if so many of the strange ones are other tokens' rows."""
_FEW = 0.01
"""Rows that are like nothing are no finding below this share of all."""
_BY_ID = 0.9


def permuted(patient: Patient) -> Finding | None:
    """Rows that belong to other tokens."""
    found = [r for r in patient.rows.values() if len(r.moved) > 1 and len(r.moved) >= _MATCHED * r.tried]
    by_id = [r for r in patient.rows.values() if r.strange and r.by_id > _BY_ID and not r.constant]
    if not found and not by_id:
        return None
    rows = (found or by_id)[0]
    evidence = [
        Evidence(f"rows of {r.name} that are not those of their tokens", len(r.strange)) for r in found or by_id
    ]
    for m in rows.moved[:3]:
        parent = next(p for p in patient.parents if p.name == m.parent)
        token, other = patient.model.by_id.get(m.at, f"id {m.at}"), parent.by_id.get(m.origin, f"id {m.origin}")
        evidence.append(Evidence(f"row {m.at} ({quoted(token, 24)})", f"is that of {quoted(other, 24)} in {m.parent}"))
    if by_id:
        evidence.append(Evidence("of these rows the same ids of the parents explain", by_id[0].by_id))
    apart = [p.name for p in patient.parents if ordered_otherwise(patient, p.name)]
    cause = (
        f"{listed(apart)} gives the same tokens other ids, and the rows were merged by id"
        if apart
        else "the tokenizer is of another model than the embeddings, or their rows were moved"
    )
    return Finding(
        "permuted-rows",
        f"{listed([r.name for r in found or by_id])}: rows belong to other tokens",
        tuple(evidence),
        cause,
        "merge by token (`tokenizer: {source: union}`), or copy the tokenizer that belongs to the embeddings",
        tensors=frozenset(r.name for r in found or by_id),
    )


def unfilled(patient: Patient) -> Finding | None:
    """Rows that no source wrote."""
    found = [r for r in patient.rows.values() if r.name not in patient.explained and _written_by_none(r)]
    if not found:
        return None
    evidence = []
    for r in found:
        added = [i for i in (*r.zero, *r.unlike) if i in r.added]
        evidence.append(Evidence(f"rows of {r.name} that are no source's", len(r.zero) + len(r.unlike), {}))
        if r.zero:
            evidence.append(Evidence("of them zeros", len(r.zero)))
        if r.constant:
            evidence.append(Evidence("of them, in a sample, one and the same row", f"{r.constant} of {r.tried}"))
        if added:
            evidence.append(Evidence(f"of them tokens that {patient.parents[0].name} does not have", len(added)))
        some = [patient.model.by_id.get(i, f"id {i}") for i in (*r.zero, *r.unlike)[:3]]
        evidence.append(Evidence("for example", listed([quoted(token, 24) for token in some])))
    return Finding(
        "unfilled-rows",
        f"{listed([r.name for r in found])}: rows that no source wrote",
        tuple(evidence[:6]),
        "the vocabulary was enlarged, and the rows of the new tokens were not taken from the source that has them",
        "merge with `tokenizer: {source: union}`, which fills them; `tokens` says where single ones come from",
        tensors=frozenset(r.name for r in found),
    )


def _written_by_none(rows: Rows) -> bool:
    """Whether enough rows are zeros, or like nothing."""
    some = max(1, round(_FEW * rows.compared))
    new = [i for i in rows.unlike if i in rows.added]
    return bool(rows.zero) or len(rows.unlike) >= max(2, some) or len(new) > 1


def ordered_otherwise(patient: Patient, name: str) -> bool:
    """Whether a parent has some of the merge's tokens under other ids."""
    tokens = next(p for p in patient.parents if p.name == name).tokens or {}
    return any(tokens.get(token, i) != i for token, i in (patient.model.tokens or {}).items())
