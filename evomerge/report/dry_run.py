"""Shows what a search would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dry_run_lines(facts: Mapping[str, Any]) -> list[str]:
    """Says the facts of a dry run, a line each."""
    return [f"{key}: {_said(key, value)}" for key, value in facts.items()]


def _said(key: str, value: Any) -> str:
    if key == "genes":
        return "their number depends on the layers of the models" if value is None else f"{value} searched values"
    if key == "budget":
        return _budget(value)
    if key == "timeouts":
        return ", ".join(f"{name} {seconds:g} s" for name, seconds in value.items())
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, list):
        return (", " if key in ("methods", "slices", "not checked") else "; ").join(value)
    return str(value)


def _budget(limits: Mapping[str, Any]) -> str:
    parts = [f"{limits['trials'] or 'any number of'} trials"]
    parts += [f"{limits['seconds']:.0f} s"] if "seconds" in limits else []
    parts += [f"{limits['items']:,} items"] if "items" in limits else []
    return ", ".join(parts)
