"""Compares the tokens of models by id -> token: ids that two of them order differently, and rows that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.tokenizer import vocabulary
from evomerge.escape import quoted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SHOWN = 3


@dataclass(frozen=True)
class Reordered:
    """Two models, or groups of models with the same tokens, that have different tokens under equal ids.

    Attributes:
        one, other: their names.
        ids: these ids, in order.
        moved: how many tokens both have, under different ids.
        examples: the first of these ids with both tokens.
    """

    one: str
    other: str
    ids: tuple[int, ...]
    moved: int
    examples: tuple[tuple[int, str, str], ...]

    def __str__(self) -> str:
        shown = ", ".join(f"{i} is {quoted(a, 30)} and {quoted(b, 30)}" for i, a, b in self.examples)
        more = ", ..." if len(self.ids) > len(self.examples) else ""
        return f"{self.one} and {self.other} order {len(self.ids)} ids differently ({shown}{more})"


def reordered(models: Mapping[str, Checkpoint]) -> list[Reordered]:
    """The pairs of models that have different tokens under equal ids; models with the same tokens are named together.
    InputError where a tokenizer cannot be read."""
    groups: list[tuple[list[str], dict[str, int]]] = []
    for name, model in models.items():
        tokens = vocabulary(model)
        same = next((names for names, known in groups if known == tokens), None)
        if same is not None:
            same.append(name)
        elif tokens:
            groups.append(([name], tokens))
    result = []
    for (ones, ours), (others, theirs) in combinations(groups, 2):
        by_id = [{i: token for token, i in tokens.items()} for tokens in (ours, theirs)]
        differing = sorted(i for i, token in by_id[0].items() if by_id[1].get(i, token) != token)
        if differing:
            moved = sum(1 for token, i in ours.items() if theirs.get(token, i) != i)
            examples = tuple((i, by_id[0][i], by_id[1][i]) for i in differing[:_SHOWN])
            result.append(Reordered(_joined(ones), _joined(others), tuple(differing), moved, examples))
    return result


def _joined(names: list[str]) -> str:
    return f"({', '.join(names)})" if len(names) > 1 else names[0]


def shared_rows(base: Checkpoint, other: Checkpoint) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """The rows of the tokens that two models share, in the base's matrices and in the other's, in the order of the
    first; None where both have the same tokens under the same ids, and as many rows."""
    ours, theirs = vocabulary(base), vocabulary(other)
    rows = [model.tensors[model.embedding].shape[0] if model.embedding else None for model in (base, other)]
    if (not ours or not theirs or ours == theirs) and rows[0] == rows[1]:
        return None
    import numpy as np

    if not ours or not theirs:
        both = np.arange(min(row for row in rows if row is not None), dtype=np.int64)
        return both, both
    pairs = sorted((i, theirs[token]) for token, i in ours.items() if token in theirs)
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
