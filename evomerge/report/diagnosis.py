"""Shows what doctor found: findings as text, what the models did as tables, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evomerge.examine.doctor import Diagnosis
from evomerge.examine.findings.finding import Evidence, Finding, Value
from evomerge.numbers import number
from evomerge.report.models.replies import replies_data, reply_tables
from evomerge.report.shown import Cell, Column, Row, Sheet
from evomerge.report.tables import directed

if TYPE_CHECKING:
    from evomerge.examine.findings.behaviour import Behaviour


def diagnosis_words(diagnosis: Diagnosis) -> list[Sheet | str]:
    """What is printed: tables of what the models did, symptoms, findings, and what could not be looked at."""
    things: list[Sheet | str] = []
    if diagnosis.behaviour:
        things.append(_behaviour(diagnosis))
    if diagnosis.scores:
        things.append(_scores(diagnosis))
    things += reply_tables(diagnosis.replies)
    for symptom in diagnosis.symptoms:
        things.append(f"symptom: {symptom.says}")
    for finding in diagnosis.findings:
        things += ["", *finding_lines(finding)]
    things += [f"note: {line}" for line in diagnosis.notes]
    count = len(diagnosis.findings)
    parents = ", ".join(diagnosis.parents)
    beside = f"beside {parents}" if parents else "by itself"
    things += [
        "",
        f"{count} finding{'s' * (count > 1)}" if count else f"nothing was found in {diagnosis.model} {beside}",
    ]
    return things


def finding_lines(finding: Finding) -> list[str]:
    """A finding: what is wrong, what shows it, the likely cause, and what to change."""
    lines = [f"{finding.severity}: {finding.says} [{finding.name}]"]
    lines += [f"    {_evidence(e)}" for e in finding.evidence]
    return [*lines, f"  likely cause: {finding.cause}", f"  change: {finding.change}"]


def finding_line(finding: Finding) -> str:
    """A finding in one line."""
    return f"{finding.severity}: {finding.says}"


def _evidence(evidence: Evidence) -> str:
    beside = ", ".join(f"{name} {_value(value)}" for name, value in evidence.beside.items())
    joint = " " if evidence.what.startswith(("row ", "rows ")) and isinstance(evidence.value, str) else ": "
    return f"{evidence.what}{joint}{_value(evidence.value)}{f' ({beside})' if beside else ''}"


def _value(value: Value) -> str:
    """Writes a number with about four digits, and a whole one as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (value == value and abs(value) < 1e9 and value == int(value)):
        return f"{int(value)}"
    return f"{value:.4g}"


def _behaviour(diagnosis: Diagnosis) -> Sheet:
    columns = [
        Column("bits per byte"),
        Column("entropy"),
        Column("repeated"),
        Column("ended"),
        Column("largest activation"),
    ]
    rows = [
        Row(
            [name],
            [
                Cell(number(b.bits_per_byte, 3)),
                Cell(number(b.entropy, 3)),
                Cell(f"{100 * b.repetition:.0f} %"),
                Cell(f"{100 * b.ended:.0f} %"),
                Cell(f"{b.peak:.4g}"),
            ],
        )
        for name, b in diagnosis.behaviour.items()
    ]
    legend = [
        "bits per byte: of plain text, lower is better; entropy: of predictions, as a share of the largest possible",
        "repeated: of what it wrote, greedily, in runs of four tokens; ended: texts that it ended by itself",
    ]
    return Sheet(f"what {diagnosis.model} and its parents do", ["model"], columns, rows, legend)


def _scores(diagnosis: Diagnosis) -> Sheet:
    infos = diagnosis.slices
    columns = [Column(name, directed(info.metric, info.sign)) for name, info in infos.items()]
    rows = []
    for model, scores in diagnosis.scores.items():
        cells = []
        for name, info in infos.items():
            error = scores[name].stderr
            more = "" if error is None else f" ± {number(error, 3)}"
            cells.append(Cell(number(info.show(scores[name].value)), more))
        rows.append(Row([model], cells))
    return Sheet("scores, ± one standard error", ["model"], columns, rows, [])


def diagnosis_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """All of it, as JSON holds it."""
    return {
        "model": diagnosis.model,
        "healthy": diagnosis.healthy,
        "parents": dict(diagnosis.parents),
        "findings": findings_data(diagnosis.findings),
        "symptoms": [
            {"name": s.name, "says": s.says, "evidence": [_evidence_data(e) for e in s.evidence]}
            for s in diagnosis.symptoms
        ],
        "behaviour": {name: _behaviour_data(b) for name, b in diagnosis.behaviour.items()},
        "scores": {
            model: {
                name: {"score": info.show(scores[name].value), "stderr": scores[name].stderr}
                for name, info in diagnosis.slices.items()
            }
            for model, scores in diagnosis.scores.items()
        },
        **({"replies": replies_data(diagnosis.replies)} if diagnosis.replies else {}),
        "notes": list(diagnosis.notes),
    }


def findings_data(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings, as JSON holds them."""
    return [
        {
            "name": finding.name,
            "severity": finding.severity,
            "says": finding.says,
            "evidence": [_evidence_data(e) for e in finding.evidence],
            "cause": finding.cause,
            "change": finding.change,
            "tensors": sorted(finding.tensors),
        }
        for finding in findings
    ]


def _behaviour_data(behaviour: Behaviour) -> dict[str, Any]:
    """All but the tokens of the texts, which are compared and mean nothing by themselves."""
    return {key: value for key, value in asdict(behaviour).items() if key != "tokens"}


def _evidence_data(evidence: Evidence) -> dict[str, Any]:
    return {"what": evidence.what, "value": evidence.value, "beside": dict(evidence.beside)}
