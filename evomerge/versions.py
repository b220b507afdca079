"""Versions of the packages that results depend on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

SCORING = ("evomerge", "torch", "transformers", "lm-eval", "optuna", "cma", "numpy", "safetensors")
"""Those that compute scores."""

MERGING = ("evomerge", "torch", "transformers", "tokenizers", "numpy", "safetensors")
"""Those that make the files of a merge."""


def versions(packages: Sequence[str] = SCORING) -> dict[str, str]:
    """The versions of Python, the system and these packages; "absent" for one that is not there."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def differing(others: Mapping[str, str]) -> str:
    """The packages of which this process has other versions, in words; empty where there are none."""
    here = versions([name for name in others if name not in ("python", "platform")])
    different = [name for name in others if name != "platform" and here[name] != others[name]]
    return ", ".join(f"{name} {here[name]}, and the run {others[name]}" for name in different)
