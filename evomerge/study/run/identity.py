"""What a run is made of: a resumed run must find the same checkpoints, files and items, or it would mix two studies."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

from evomerge.errors import InputError

_PACKAGES = ("evomerge", "torch", "transformers", "lm-eval", "optuna", "cma", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """Versions of what computes the scores, for the record."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def changed_versions(recorded: Mapping[str, str]) -> str:
    """Which packages are of another version than recorded, in words; empty where none is."""
    now = versions()
    return ", ".join(f"{k} {recorded.get(k)} -> {now[k]}" for k in ("python", *_PACKAGES) if recorded.get(k) != now[k])


def check_unchanged(run: str, recorded: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """InputError naming what differs between the launched study and what is there now."""
    changes = [*_differences(recorded, current)]
    if changes:
        listed = ", ".join(changes[:6]) + (f" and {len(changes) - 6} more" if len(changes) > 6 else "")
        problem = f"the run {run!r} cannot be resumed, changed since its launch: {listed}"
        raise InputError(problem, "restore what changed, or launch a new run")


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [d for k in keys for d in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    return [] if old == new else [path]
