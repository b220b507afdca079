"""Finds where parts of a merge come from: which layer of its parents a layer is, and which rows a matrix's rows are.

Fine-tunes of one base keep their rows: the same row of two of them has a cosine near 1, and another one has a cosine
near 0. So a sample of rows tells layers, blocks and rows apart, whatever weights they were merged with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evomerge.checkpoints.headers import FLOATS
from evomerge.examine.findings.models import ModelView

ALIKE = 0.8
"""The cosine of rows, from which on one is said to be the other."""
_PARTS, _ROWS, _COLUMNS = 8, 16, 512
"""Of a layer: matrices, and rows and columns of each, that are compared with those of other layers."""
_TRIED = 32
"""Rows of a matrix that are looked for."""
_HALF = 0.5
"""A tensor of another layer is nearer to it than this share of its distance from its own one."""
_MORE, _MOVED = 0.1, 0.25
"""How much more than its own row another one must be like a row; and the share of rows that must have moved."""


@dataclass(frozen=True)
class Origin:
    """The layer of a parent that a layer of the merge is most like. `cosine`: with it; `own`: with the layer of its own
    number."""

    parent: str
    layer: int
    cosine: float
    own: float


@dataclass(frozen=True)
class Block:
    """Rows [first, last] of a matrix, as far as they were tried, that are rows of another tensor of a parent."""

    first: int
    last: int
    parent: str
    tensor: str
    at: int


def find_origins(model: ModelView, parents: Sequence[ModelView]) -> tuple[Origin, ...] | None:
    """The origin of each layer: a recipe says it, else a sample of rows does. None without parents of this kind."""
    if model.origins is not None:
        return _planned(model, parents)
    parts = _parts(model)
    if not parts:  # layers of several kinds, which have nothing in common
        return None
    known = [p for p in parents if p.layers]
    sketches = [(p, sketch) for p in known if (sketch := _sketch(p, parts, model)) is not None]
    own = _sketch(model, parts, model)
    if not sketches or own is None:
        return None
    cosines = [_between(own, sketch) for _, sketch in sketches]
    found = []
    for layer in range(model.layers):
        best = max(((float(c[layer].max()), i) for i, c in enumerate(cosines)))
        at = [float(c[layer, layer]) for c in cosines if layer < c.shape[1]]
        same = max(at, default=0.0)
        i = best[1]
        if same > best[0] - 0.1 or (best[0] < 0.5 and at):  # its own layer, or of nothing that is known
            i = int(np.argmax([float(c[layer, layer]) if layer < c.shape[1] else -1.0 for c in cosines]))
            found.append(Origin(sketches[i][0].name, layer, same, same))
        else:
            found.append(Origin(sketches[i][0].name, int(cosines[i][layer].argmax()), best[0], same))
    return tuple(found)


def _between(own: NDArray[np.float64], sketch: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cosine of each layer with each of another model: [layers, their layers], the mean over the parts that are not
    zero."""
    parts = np.maximum(1, own.any(-1).sum(1, keepdims=True))
    cosines: NDArray[np.float64] = own.reshape(len(own), -1) @ sketch.reshape(len(sketch), -1).T / parts
    return cosines


def _planned(model: ModelView, parents: Sequence[ModelView]) -> tuple[Origin, ...] | None:
    """The origins that a recipe's jobs read."""
    names = {p.reference: p for p in parents}
    found: dict[int, Origin] = {}
    for name, reads in (model.origins or {}).items():
        layer = model.place(name)
        if not isinstance(layer, int) or layer in found:
            continue
        for reference, tensor in reads:
            parent = names.get(reference)
            place = parent.place(tensor) if parent else None
            if parent is not None and isinstance(place, int):
                found[layer] = Origin(parent.name, place, 1.0, 1.0 if place == layer else 0.0)
                break
    return tuple(found[i] for i in range(model.layers)) if len(found) == model.layers else None


def _parts(model: ModelView) -> list[str]:
    """Names of matrices that all layers of the model have, behind the layer's number."""
    by_layer: dict[str, int] = {}
    for name, shape in model.shapes.items():
        if isinstance(model.place(name), int) and len(shape) == 2 and model.dtypes[name] in FLOATS:
            part = model.stack.part(name)
            by_layer[part] = by_layer.get(part, 0) + 1
    return [part for part, count in by_layer.items() if count == model.layers][:_PARTS]


def _sketch(view: ModelView, parts: Sequence[str], model: ModelView) -> NDArray[np.float64] | None:
    """[layers, parts, elements] of unit vectors; None where the model lacks a part, or it has another shape."""
    layers = []
    for layer in range(view.layers):
        vectors = []
        for part in parts:
            name, shape = view.stack.name(layer, part), model.shapes[model.stack.name(0, part)]
            if view.shapes.get(name) != shape:
                return None
            first = (shape[0] - min(_ROWS, shape[0])) // 2
            rows = view.read_rows(name, first, first + min(_ROWS, shape[0]))[:, :_COLUMNS].double().reshape(-1)
            rows = torch.nan_to_num(rows, posinf=0.0, neginf=0.0)
            vector = torch.zeros(_ROWS * _COLUMNS, dtype=torch.float64)
            vector[: len(rows)] = rows / rows.norm().clamp_min(1e-30)
            vectors.append(vector)
        layers.append(torch.stack(vectors))
    return torch.stack(layers).numpy() if layers else None


def find_blocks(model: ModelView, name: str, parents: Sequence[ModelView], layer: int) -> list[Block]:
    """Where the rows of a layer's matrix come from, in blocks, by rows that are tried: in another place of the parents'
    layer `layer`. Empty where they are where they should be, or nothing is like them."""
    shape = model.shapes[name]
    step = max(1, shape[0] // _TRIED)
    at = torch.arange(0, shape[0], step)
    tried = unit_rows(model.read(name)[at])
    found: list[tuple[str, str, int] | None] = [None] * len(at)
    own = model.stack.name(layer, model.stack.part(name))
    # A row that is as much like its own one in a parent has not moved.
    best = torch.full((len(at),), ALIKE)
    for parent in parents:
        if parent.shapes.get(own) == shape:
            best = torch.maximum(best, (tried * unit_rows(parent.read(own)[at])).sum(1) + _MORE)
    for parent in parents:
        for other, other_shape in parent.shapes.items():
            if parent.place(other) != layer or len(other_shape) != 2 or other_shape[1] != shape[1]:
                continue
            cosines, rows = (tried @ unit_rows(parent.read(other)).T).max(1)
            for i in (cosines > best).nonzero().flatten().tolist():
                best[i], found[i] = cosines[i], (parent.name, other, int(rows[i]))
    moved = sum(origin is not None and origin[1:] != (own, i) for origin, i in zip(found, at.tolist(), strict=True))
    return _blocks(own, at.tolist(), found) if moved >= _MOVED * len(at) else []


def _blocks(own: str, at: Sequence[int], found: Sequence[tuple[str, str, int] | None]) -> list[Block]:
    """Rows that moved by one distance, together."""
    blocks: list[Block] = []
    for row, origin in zip(at, found, strict=True):
        if origin is None or (origin[1] == own and origin[2] == row):
            continue
        parent, tensor, there = origin
        last = blocks[-1] if blocks else None
        if last and last.tensor == tensor and there - row == last.at - last.first:
            blocks[-1] = Block(last.first, row, last.parent, tensor, last.at)
        else:
            blocks.append(Block(row, row, parent, tensor, there))
    return blocks


def other_layer(model: ModelView, name: str, parents: Sequence[ModelView], layer: int) -> tuple[str, int] | None:
    """The parent and its layer, other than `layer`, whose tensor one of the merge is, by a sample of its rows. None
    where there is none."""
    shape, part = model.shapes[name], model.stack.part(name)
    first = (shape[0] - min(_TRIED, shape[0])) // 2
    own = _rows_of(model, name, first)
    found, best = None, (2 - 2 * ALIKE) ** 0.5 * float(own.norm())  # as far as rows of that cosine are
    for parent in parents:
        for other in range(parent.layers):
            if parent.shapes.get(there := parent.stack.name(other, part)) != shape:
                continue
            apart = float((own - _rows_of(parent, there, first)).norm())
            if other == layer:
                best, found = min(best, _HALF * apart), found if _HALF * apart > best else None
            elif apart < best:
                best, found = apart, (parent.name, other)
    return found


def _rows_of(view: ModelView, name: str, first: int) -> Tensor:
    """A sample of a tensor's rows, flat; all of a vector."""
    shape = view.shapes[name]
    rows = view.read(name) if len(shape) < 2 else view.read_rows(name, first, first + min(_TRIED, shape[0]))
    return torch.nan_to_num(rows.double().reshape(-1), posinf=0.0, neginf=0.0)


def unit_rows(rows: Tensor) -> Tensor:
    """The rows with length 1, as float32; what is not finite counts as 0."""
    rows = torch.nan_to_num(rows.float(), posinf=0.0, neginf=0.0)
    unit: Tensor = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return unit
