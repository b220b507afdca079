"""The reference's pages of Python: names, which mkdocstrings fills in."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path

from texts import method_names

import evomerge


def python() -> str:
    """The public names of the package, for mkdocstrings to fill in."""
    functions = [name for name in evomerge.__all__ if name[0].islower()]
    classes = [name for name in evomerge.__all__ if name[0].isupper()]
    return (
        "# Python\n\nThe names that `import evomerge` gives. [Python and notebooks](../api.md) shows them at work.\n\n"
        f"## Functions\n\n{_described(functions)}\n## Classes\n\n{_described(classes)}"
    )


def _described(names: Iterable[str]) -> str:
    return "\n".join(f"::: evomerge.{name}\n" for name in names)


def testing() -> str:
    """The conformance suites that other packages run, with their tests as sentences."""
    folder = Path(inspect.getfile(evomerge)).parent / "testing"
    parts = ["# Conformance suites\n", "[Your own](../extend.md) says how to use them.\n"]
    for file in sorted(folder.glob("[!_]*.py")):
        module = f"evomerge.testing.{file.stem}"
        parts.append(f"## {module}\n\n::: {module}\n    options: {{show_root_heading: false}}\n")
        if tests := method_names(module, "test_"):
            parts.append("The tests:\n")
            parts += [f"- {name.replace('_', ' ')}" for name in tests]
            parts.append("")
    return "\n".join(parts)
