"""What a recipe probably does otherwise than its author means, as far as a sample of the weights shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.samples.training import DARE, dare_doubts
from evomerge.recipe.recipe import Document, Recipe


def doubts(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> list[str]:
    """A line for each document that uses DARE on deltas too large for it.

    Args:
        checkpoints: those that the recipe reads.
    """
    opened = {checkpoint.reference: checkpoint for checkpoint in checkpoints}
    lines: dict[str, None] = {}
    for document in recipe.documents:
        base = opened.get(document.base or "")
        if document.method not in DARE or base is None:
            continue
        names = [name for name in _models(document) if name in opened and name != document.base]
        sources = {Path(name.partition("@")[0]).name: opened[name] for name in names}
        lines.update(dict.fromkeys(dare_doubts(base, sources, [document.method])))
    return list(lines)


def _models(document: Document) -> list[str]:
    return list(dict.fromkeys(i.model for s in document.all_slices for i in s.inputs))
