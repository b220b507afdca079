"""Makes tensors of rows, once for all candidates. They stay on the host: a batch has a few kilobytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.scoring.engine.encode import Window
from evomerge.scoring.engine.tree import Row


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows padded to L nodes. N of the B * L positions have logits that count, M (position, token) pairs are scored.

    Attributes:
        tokens: [B, L].
        depths: [B, L], see `tree`; None for plain sequences.
        ends: [B, L], see `tree`; None for plain sequences.
        where: [N], the positions with logits, counted through the batch.
        node: [M], which of the N positions each pair has.
        target: [M], the token of each pair.
    """

    tokens: Tensor
    depths: Tensor | None
    ends: Tensor | None
    where: Tensor
    node: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """All batches of some windows.

    Attributes:
        batches: trees first, then plain sequences.
        pairs: for each window its T pairs, counted through all batches.
        rows: longest first.
    """

    batches: list[Batch]
    pairs: list[NDArray[np.int64]]
    rows: list[Row]


def lay_out(windows: Sequence[Window], rows: Sequence[Row], batch_size: int) -> Layout:
    """Makes batches of trees, then batches of plain sequences, which need no mask. `rows`: longest first."""
    batches: list[Batch] = []
    pairs: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(windows)
    done = 0
    for branched in (True, False):
        for group in grouped((row for row in rows if row.branched == branched), batch_size):
            batch, in_batch = _batch(windows, group, branched)
            for number, numbers in in_batch.items():
                pairs[number] = np.array(numbers, np.int64) + done
            batches.append(batch)
            done += len(batch.target)
    return Layout(batches, pairs, list(rows))


def grouped(rows: Iterable[Row], batch_size: int) -> Iterator[list[Row]]:
    """Cuts rows, longest first, into batches. A batch is a single row, or has at most as many positions (padding
    included) as `batch_size` of its longest windows."""
    group: list[Row] = []
    longest = 0
    for row in rows:
        longest = max(longest, row.longest)
        if group and (len(group) + 1) * len(group[0]) > batch_size * longest:
            yield group
            group, longest = [], row.longest
        group.append(row)
    if group:
        yield group


def _batch(windows: Sequence[Window], rows: list[Row], branched: bool) -> tuple[Batch, dict[int, list[int]]]:
    """Makes a batch, and maps each of its windows to the numbers of its pairs within the batch."""
    length = len(rows[0])
    where: dict[int, int] = {}
    scored: dict[tuple[int, int], int] = {}
    pairs: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        for number, nodes in row.places.items():
            numbers = pairs[number] = []
            for node, target in zip(nodes, windows[number].targets.tolist(), strict=True):
                position = where.setdefault(i * length + node, len(where))
                numbers.append(scored.setdefault((position, target), len(scored)))
    node_of, target_of = torch.tensor(list(scored)).unbind(1)
    batch = Batch(
        tokens=_padded([row.tokens for row in rows], length),
        depths=_padded([row.depths for row in rows], length) if branched else None,
        ends=_padded([row.ends for row in rows], length) if branched else None,
        where=torch.tensor(list(where)),
        node=node_of,
        target=target_of,
    )
    return batch, pairs


def _padded(rows: list[list[int]], length: int) -> Tensor:
    """[B, L], zeros on the right: token 0 at depth 0 whose end is 0, which no node sees."""
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])
