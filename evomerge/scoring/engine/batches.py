"""Tensors of rows, made once for all candidates. They stay on the host: a batch's are a few kilobytes."""

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

    tokens [B, L]; for trees depths [B, L] and ends [B, L] (see `tree`), for plain sequences None. where [N]: the
    positions, counted through the batch. node [M]: which of the N positions; target [M]: the token it is held against.
    """

    tokens: Tensor
    depths: Tensor | None
    ends: Tensor | None
    where: Tensor
    node: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """All batches of some windows. `pairs` holds for each window the T pairs that it consists of, counted through
    all batches; `rows` are the rows, longest first, for whoever checks the answers."""

    batches: list[Batch]
    pairs: list[NDArray[np.int64]]
    rows: list[Row]


def lay_out(windows: Sequence[Window], rows: Sequence[Row], batch_size: int) -> Layout:
    """Batches of trees, then batches of plain sequences, which need no mask. `rows` come longest first."""
    batches: list[Batch] = []
    pairs: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(windows)
    done = 0
    for branched in (True, False):
        for group in grouped((row for row in rows if row.branched == branched), batch_size):
            batch, found = _batch(windows, group, branched)
            for number, own in found.items():
                pairs[number] = np.array(own, np.int64) + done
            batches.append(batch)
            done += len(batch.target)
    return Layout(batches, pairs, list(rows))


def grouped(rows: Iterable[Row], batch_size: int) -> Iterator[list[Row]]:
    """Cut rows, longest first, into batches. One has at most the positions, padding included, that `batch_size` of
    its longest windows would have, or it is a single row."""
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
    """The batch, and for each of its windows the numbers of its pairs within it."""
    length = len(rows[0])
    where: dict[int, int] = {}
    scored: dict[tuple[int, int], int] = {}
    found: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        for number, nodes in row.places.items():
            own = found[number] = []
            for node, target in zip(nodes, windows[number].targets.tolist(), strict=True):
                position = where.setdefault(i * length + node, len(where))
                own.append(scored.setdefault((position, target), len(scored)))
    chosen, held = torch.tensor(list(scored)).unbind(1)
    batch = Batch(
        tokens=_padded([row.tokens for row in rows], length),
        depths=_padded([row.depths for row in rows], length) if branched else None,
        ends=_padded([row.ends for row in rows], length) if branched else None,
        where=torch.tensor(list(where)),
        node=chosen,
        target=held,
    )
    return batch, found


def _padded(rows: list[list[int]], length: int) -> Tensor:
    """[B, L], zeros on the right: token 0 at depth 0 whose end is 0, which no node sees."""
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])
