"""A finding: what is wrong with a model, the numbers that show it, its likely cause, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["broken", "harmful", "suspect"]
"""broken: no use of the model can be right. harmful: it is worse for it. suspect: it may be meant."""

Value = float | str

SEVERITIES: tuple[Severity, ...] = ("broken", "harmful", "suspect")
"""The worst first."""


@dataclass(frozen=True)
class Evidence:
    """One number or text that was seen: `what` it is, the model's `value`, and those of its parents by name."""

    what: str
    value: Value
    beside: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One cause that was found.

    Attributes:
        name: of the cause, always the same: "permuted-rows".
        says: what is wrong, in one line.
        evidence: what was seen.
        cause: where it likely comes from.
        change: what to do.
        severity: how bad it is.
        tensors: the tensors that it explains; later checks leave them out.
    """

    name: str
    says: str
    evidence: tuple[Evidence, ...]
    cause: str
    change: str
    severity: Severity = "broken"
    tensors: frozenset[str] = frozenset()


def listed(names: list[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
