"""The search space that `evomerge init` writes: few genes for few trials, and a reason in a comment beside each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.references import split_adapter
from evomerge.checkpoints.samples.deltas import Deltas
from evomerge.examine.checks.advice import START_APART, Advice, are_apart, groups_for
from evomerge.examine.checks.parents import Parents
from evomerge.files.trees import as_scalar

TRIALS = 100


@dataclass(frozen=True)
class StarterSpace:
    """What is chosen for a space.

    Attributes:
        method: "slerp" for one source, else "task_arithmetic".
        groups: layer groups.
        tokenizer: "base", or "union" where a source brings tokens.
        start: the weight that a search starts from.
        notes: comments for the head of the file.
    """

    parents: Parents
    method: str
    groups: int
    tokenizer: str
    trials: int
    start: float
    notes: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()


def choose_space(
    parents: Parents,
    deltas: Deltas,
    tokenizer: str,
    trials: int,
    notes: Sequence[str] = (),
    advice: Sequence[Advice] = (),
) -> StarterSpace:
    """Chooses method, genes and layer groups by the number of sources, the layers, and the budget."""
    method = "slerp" if len(parents.sources) == 1 else "task_arithmetic"
    groups = groups_for(len(parents.sources), parents.base.layers, trials)
    start = START_APART if are_apart(deltas) else _start(len(parents.sources))
    return StarterSpace(parents, method, groups, tokenizer, trials, start, tuple(notes), tuple(advice))


def space_text(space: StarterSpace, file: Path, fitness: str) -> str:
    """The text of the space that is to be at `file`. `fitness`: its fitness file, as it is written there."""
    parents, count = space.parents, len(space.parents.sources)
    lines = [
        "# A search space: written by `evomerge init`, to be changed. Every key: docs/files.md",
        *(f"# {note}" for note in space.notes),
        f"base: {as_scalar(reference(parents.base, file))}",
        "sources:",
        *(f"  {as_scalar(name)}: {as_scalar(reference(source, file))}" for name, source in parents.sources.items()),
        *_tokenizer(space),
        *_layers(space.groups, parents.base.layers),
        "genes:",
        *(_slerp(space.groups) if space.method == "slerp" else _weights(space, count)),
        "optimizer: {seed: 0}           # the default one; others: docs/optimizers.md",
        f"budget: {{trials: {space.trials}}}          # {count + 2} of them score base, sources and their average",
        f"fitness: {as_scalar(fitness)}",
        *_further(space.advice),
    ]
    return "\n".join(lines) + "\n"


def reference(checkpoint: Checkpoint, file: Path) -> str:
    """A checkpoint's reference from the folder of `file`: a relative path, or a hub id with its revision."""
    model, adapter = split_adapter(checkpoint.resolved())
    parts = [model] if adapter is None else [model, adapter]
    return "+".join(os.path.relpath(part, file.parent) if os.path.isabs(part) else part for part in parts)


def _tokenizer(space: StarterSpace) -> list[str]:
    if space.tokenizer == "base":
        return []
    return [f"tokenizer: {space.tokenizer}               # sources bring tokens that the base lacks; `base` drops them"]


def _layers(groups: int, layers: int) -> list[str]:
    if groups == 1:
        return []
    return [f"layers: {groups}                      # groups of the {layers} layers, each with values of its own"]


def _slerp(groups: int) -> list[str]:
    per = ", per: [layers]" if groups > 1 else ""
    return [
        "  method: slerp                # one source: how far to go from the base is the question",
        f"  t: {{low: 0.0, high: 1.0, init: 0.5{per}}}     # 0 is the base, 1 the source",
    ]


def _weights(space: StarterSpace, count: int) -> list[str]:
    per = "[sources, layers]" if space.groups > 1 else "[sources]"
    numbers = f"{count} sources x {space.groups} groups = {count * space.groups} numbers" if space.groups > 1 else ""
    return [
        "  method: task_arithmetic      # base + sum of weight * (source - base)",
        f"  weight: {{low: 0.0, high: 1.2, init: {space.start:g}, per: {per}}}     # {numbers or f'{count} numbers'}",
    ]


def _start(count: int) -> float:
    """A little more than the average's weight."""
    return max(0.2, min(0.5, round(1 / count + 0.05, 1)))


def _further(advice: Sequence[Advice]) -> list[str]:
    """What else could be tried, as comments."""
    return ["", "# What `evomerge check` says besides:", *(f"#   {a.what}: {a.why}" for a in advice)] if advice else []
