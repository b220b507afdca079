"""Compares the rows of embeddings and heads with those of the parents, token by token.

A row is explained by the rows of the same token in the parents, as far as they span it. All rows are taken about their
mean: those of trained models point one way for the most part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.examine.findings.models import ModelView
from evomerge.examine.findings.origins import ALIKE, unit_rows

_STRANGE = 0.7
"""A row of which the parents' rows explain less (of its square) is strange. Random masks go down to 0.5."""
_UNLIKE = 0.25
"""A row of which they explain less is like none of them."""
_SMALL = 1e-3
"""A row with a norm below this share of the median is zero."""
_CHUNK, _TRIED = 8192, 64


@dataclass(frozen=True)
class Moved:
    """A row that is a parent's row of another token. `at`: its id; `origin`: the other one's, in the merge's tokens
    where it has that token, else the parent's id."""

    at: int
    parent: str
    origin: int
    cosine: float


@dataclass(frozen=True)
class Rows:
    """The rows of one matrix of the merge.

    Attributes:
        compared: how many rows have a token that some parent has.
        strange: ids whose rows no parent's row of the same token explains.
        unlike: those of them that are like nothing in the parents.
        tried: how many of the strange ones were looked for in the parents.
        moved: those that were found there.
        zero: ids of zero rows that are not zero in a parent.
        constant: of the rows that were tried, how many are one and the same.
        added: ids of tokens that the first parent does not have.
        explained: the median share that the parents explain.
        by_id: the median share of the strange rows that the parents' rows of the same ids, not tokens, explain.
    """

    name: str
    compared: int
    strange: tuple[int, ...]
    unlike: tuple[int, ...]
    tried: int
    moved: tuple[Moved, ...]
    zero: tuple[int, ...]
    constant: int
    added: frozenset[int]
    explained: float
    by_id: float = 0.0


def measure_rows(model: ModelView, parents: Sequence[ModelView], name: str) -> Rows:
    """Measures a matrix of the merge that has a row for each token."""
    merged = model.read(name)
    ids, maps = _aligned(model, parents, len(merged))
    matrices, used = [], []
    for parent, places in zip(parents, maps, strict=True):
        matrix = _matrix(parent, name, merged.shape[1])
        if matrix is not None:
            matrices.append(matrix)
            used.append((parent, torch.where(places < len(matrix), places, -1)))
    if not used:
        return Rows(name, 0, (), (), 0, (), (), 0, frozenset(), 1.0)
    explained, norms, theirs = _explained(merged, ids, matrices, [places for _, places in used])
    known = torch.stack([places for _, places in used]).ge(0).any(0)
    typical = float(theirs[known].median()) if bool(known.any()) else 0.0
    zero = known & (norms < _SMALL * typical) & (theirs > 0.1 * typical)
    strange = known & ~zero & (explained < _STRANGE) & (norms > _SMALL * typical)
    at = ids[strange]
    tried = at[torch.linspace(0, len(at) - 1, min(_TRIED, len(at))).round().long()] if len(at) else at
    rows = merged[tried].float()
    alike = 0
    if len(rows) > 1:
        unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
        alike = int(((unit @ unit.T) > 0.999).sum(1).max())
    by_id = 0.0
    if len(at):
        same = [torch.where(at < len(matrix), at, -1) for matrix in matrices]
        by_id = float(_explained(merged, at, matrices, same)[0].median())
    moved = () if not len(rows) or 1 < alike == len(rows) else _moved(merged, tried, used, matrices)
    return Rows(
        name=name,
        compared=int(known.sum()),
        strange=tuple(at.tolist()),
        unlike=tuple(ids[strange & (explained < _UNLIKE)].tolist()),
        tried=len(tried),
        moved=moved,
        zero=tuple(ids[zero].tolist()),
        constant=alike if alike > 1 else 0,
        added=frozenset(ids[used[0][1] < 0].tolist()),
        explained=float(explained[known].median()) if bool(known.any()) else 1.0,
        by_id=by_id,
    )


def _aligned(model: ModelView, parents: Sequence[ModelView], rows: int) -> tuple[Tensor, list[Tensor]]:
    """The ids that are compared, and for each parent the ids of the same tokens there, -1 for none. Without tokenizers
    an id is an id."""
    if model.tokens is None or any(p.tokens is None for p in parents):
        ids = torch.arange(rows)
        return ids, [ids for _ in parents]
    tokens = [(i, token) for token, i in model.tokens.items() if i < rows]
    maps = [torch.tensor([(p.tokens or {}).get(token, -1) for _, token in tokens]) for p in parents]
    return torch.tensor([i for i, _ in tokens]), maps


def _matrix(parent: ModelView, name: str, width: int) -> Tensor | None:
    """The parent's matrix; its embeddings in place of a head that it ties to them."""
    there = name if name in parent.shapes else parent.embedding if parent.tied or name != parent.head else None
    if there is None or len(parent.shapes[there]) != 2 or parent.shapes[there][1] != width:
        return None
    return parent.read(there)


def _explained(
    merged: Tensor, ids: Tensor, matrices: Sequence[Tensor], maps: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """For each id: the share of its row's square that the parents' rows of its token span; its norm; and the largest
    norm of those."""
    centre = merged.float().mean(0)
    centres = [matrix.float().mean(0) for matrix in matrices]
    shares, norms, theirs = [], [], []
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        plain = merged[part].float()
        row = torch.nan_to_num(plain - centre, posinf=0.0, neginf=0.0)
        others, largest = [], torch.zeros(len(part))
        for matrix, mean, places in zip(matrices, centres, maps, strict=True):
            at = places[start : start + _CHUNK]
            found = matrix[at.clamp_min(0)].float()
            there = (at >= 0).float()
            largest = torch.maximum(largest, found.norm(dim=1) * there)
            others.append(torch.nan_to_num(found - mean, posinf=0.0, neginf=0.0) * there[:, None])
        span = torch.stack(others, 1).double()  # [rows, parents, width]
        right = torch.einsum("npd,nd->np", span, row.double())
        inverse = torch.linalg.pinv(span @ span.transpose(1, 2), rtol=1e-8, hermitian=True)
        total = row.double().square().sum(1).clamp_min(1e-30)
        shares.append(torch.einsum("np,npq,nq->n", right, inverse, right) / total)
        norms.append(plain.norm(dim=1))
        theirs.append(largest)
    return torch.cat(shares), torch.cat(norms), torch.cat(theirs)


def _moved(
    merged: Tensor, tried: Tensor, used: Sequence[tuple[ModelView, Tensor]], matrices: Sequence[Tensor]
) -> tuple[Moved, ...]:
    """Which of the rows that are tried are a parent's rows of other tokens."""
    rows = merged[tried].float() - merged.float().mean(0)
    best: dict[int, Moved] = {}
    for (parent, _), matrix in zip(used, matrices, strict=True):
        other = matrix.float() - matrix.float().mean(0)
        cosines = unit_rows(rows) @ unit_rows(other).T
        values, places = cosines.max(1)
        for i, (value, place) in enumerate(zip(values.tolist(), places.tolist(), strict=True)):
            if value >= ALIKE and (i not in best or value > best[i].cosine + 0.02):
                best[i] = Moved(int(tried[i]), parent.name, place, value)
    return tuple(best.values())
