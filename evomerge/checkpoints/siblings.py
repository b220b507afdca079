"""The tensors of a layer's experts: names that differ in the last of several numbers, as in
``layers.3.mlp.experts.0.up_proj.weight`` and ``layers.3.mlp.experts.1.up_proj.weight``."""

from __future__ import annotations

from collections.abc import Iterable


def siblings(names: Iterable[str]) -> list[list[str]]:
    """The names in groups of siblings, ordered by their number; a name without siblings is a group of its own."""
    groups: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    for name in names:
        parts = name.split(".")
        numbered = [i for i, part in enumerate(parts) if part.isdecimal()]
        number = int(parts[numbered[-1]]) if len(numbered) > 1 else 0
        if len(numbered) > 1:
            parts[numbered[-1]] = "*"
        groups.setdefault(tuple(parts), []).append((number, name))
    return [[name for _, name in sorted(group)] for group in groups.values()]
