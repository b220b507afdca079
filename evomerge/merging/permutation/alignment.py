"""Aligns one model on disk with another, says what moved, and writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from evomerge.checkpoints.checkpoint import PROCESSOR_FILES
from evomerge.checkpoints.identity import check_unchanged, identity
from evomerge.checkpoints.tokenizer import read_files, read_tokenizer_files
from evomerge.checkpoints.write import CheckpointWriter, TensorLayout
from evomerge.errors import InputError, StoppedError, Where
from evomerge.merging.permutation.function_check import MOST, function_change
from evomerge.merging.permutation.specification import Specification
from evomerge.merging.permutation.stored import StoredModel, weights_of
from evomerge.merging.permutation.symmetries import Symmetries
from evomerge.merging.permutation.weight_matching import Matching, weight_matching
from evomerge.merging.permutation.weights import Orders, Weights, counts, permuted
from evomerge.safety.durable import write_whole

Method = Literal["weights", "activations"]
Progress = Callable[[str, float], None]

_RESTARTS, _SMALL = 5, 10_000_000
"""So many descents for a model of at most so many elements; larger ones get one."""
_WRONG = 1e-2
"""The largest change of a log-probability that rounding explains."""
_GENERATION = "generation_config.json"
_MEANWHILE, _AGAIN = "while it was aligned", "run the same command again"


@dataclass(frozen=True)
class AlignedGroup:
    """One group of an alignment.

    units, members: how many of each it has; members are counted over all units.
    moved: the share of its members that stand elsewhere now.
    before, after: the cosine between both models' tensors that follow the group.
    """

    name: str
    units: int
    members: int
    moved: float
    before: float
    after: float


@dataclass(frozen=True)
class Alignment:
    """How one model was aligned with another.

    one, other: their names; `other` is the one that is permuted.
    specification: its name.
    method: by what the units were matched.
    groups: what moved.
    passes: of weight matching.
    before, after: the cosine between all tensors that follow a group.
    change: the largest change of a log-probability on random tokens; None where it was not measured.
    orders: the permutations.
    """

    one: str
    other: str
    specification: str
    method: Method
    groups: tuple[AlignedGroup, ...]
    passes: int
    before: float
    after: float
    change: float | None
    orders: Orders

    @property
    def moved(self) -> float:
        """The share of all members that stand elsewhere now."""
        total = sum(group.members for group in self.groups)
        return sum(group.moved * group.members for group in self.groups) / total


def align_models(
    one: StoredModel,
    other: StoredModel,
    specification: Specification,
    symmetries: Symmetries,
    *,
    seed: int = 0,
    match: Callable[[Weights, Weights], Matching] | None = None,
    progress: Progress | None = None,
) -> Alignment:
    """Finds the permutations of `other` that bring it nearest to `one`. Reads weights; writes nothing.

    Args:
        one, other: the models.
        specification, symmetries: of both (`shared_symmetries`).
        seed: of weight matching.
        match: matches the units in place of weight matching.
        progress: called with a text and a share.

    Raises:
        InputError: the specification changes what the model computes.
    """
    mine, its = weights_of(one, other)
    elements = sum(info.elements for info in other.tensors.values())
    if match is None:
        restarts = _RESTARTS if elements <= _SMALL else 1
        matching = weight_matching(symmetries, mine, its, seed=seed, restarts=restarts, progress=progress)
    else:
        matching = match(mine, its)
    cosines = _Cosines(symmetries, mine, its, matching.orders)
    groups = tuple(
        AlignedGroup(
            name,
            group.units,
            group.units * group.members,
            float((matching.orders[name] != group.identity).mean()),
            *cosines.of(name),
        )
        for name, group in symmetries.groups.items()
    )
    change = None
    if elements <= MOST:
        change = function_change(other.config, its, lambda name: permuted(symmetries, name, its[name], matching.orders))
    if change is not None and not change <= _WRONG:
        problem = f"the specification {specification.name} changes what {other.name} computes (by {change:.2g})"
        raise InputError(problem, "correct it: some tensor follows another group", other.where)
    method: Method = "weights" if match is None else "activations"
    before, after = cosines.of(None)
    return Alignment(
        one.name, other.name, specification.name, method, groups, matching.passes, before, after, change,
        matching.orders,
    )  # fmt: skip


class _Cosines:
    """The cosines between two models' tensors, before the second one is permuted and after."""

    def __init__(self, symmetries: Symmetries, one: Weights, other: Weights, orders: Orders) -> None:
        self._symmetries = symmetries
        self._sums: dict[str, tuple[float, float, float, float]] = {}
        for name in symmetries.axes:
            mine, its = one[name], other[name]
            if counts(name, its):
                a, b = mine.float(), its.float()
                moved = permuted(symmetries, name, b, orders)
                self._sums[name] = (_product(a, b), _product(a, moved), _product(a, a), _product(b, b))

    def of(self, group: str | None) -> tuple[float, float]:
        """Of the tensors that follow a group; None: any."""
        names = self._sums.keys() if group is None else dict.fromkeys(n for n, _ in self._symmetries.uses(group))
        before, after, mine, its = np.sum([self._sums[n] for n in names if n in self._sums] or [(0.0,) * 4], axis=0)
        norm = float(np.sqrt(mine * its)) or 1.0
        return float(before) / norm, float(after) / norm


def _product(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum(dtype=torch.float64))


def write_aligned(
    model: StoredModel,
    symmetries: Symmetries,
    orders: Orders,
    out: Path,
    *,
    overwrite: bool = False,
    files: Mapping[str, str] | None = None,
    where: Where | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes a permuted model: a checkpoint folder with all that stands beside the weights, or, of a file of tensors, a
    file. It is there whole or not at all. `files`: further small files, by name.

    Raises:
        InputError: `out` cannot be written, or the disk is full.
        StoppedError: the model changed while it was read.
    """
    names = list(model.tensors)

    def tensor(i: int, name: str) -> Tensor:
        if progress is not None:
            progress(f"writing {name}", i / len(names))
        return permuted(symmetries, name, model.read(name), orders)

    if model.checkpoint is None:
        _write_file(model, {name: tensor(i, name) for i, name in enumerate(names)}, out)
        return
    layout = {name: TensorLayout(info.shape, info.dtype) for name, info in model.tensors.items()}
    beside = read_files(model.checkpoint.path, [*PROCESSOR_FILES, _GENERATION], where)
    beside |= read_tokenizer_files(model.checkpoint.tokenizer_path, where)
    with CheckpointWriter(out, layout, overwrite=overwrite, where=where) as writer:
        for i, name in enumerate(names):
            writer.add(name, tensor(i, name))
        for name, content in beside.items():
            writer.file(name, content)
        for name, text in (files or {}).items():
            writer.text(name, text)
        writer.config(model.config)
        _check_unchanged(model)
        writer.seal()


def _write_file(model: StoredModel, tensors: Mapping[str, Tensor], out: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save

    [file] = model.files
    with safe_open(str(file), "pt") as opened:
        metadata = opened.metadata()
    content = save({name: t.contiguous() for name, t in tensors.items()}, metadata)
    _check_unchanged(model)
    write_whole(out, content)


def _check_unchanged(model: StoredModel) -> None:
    if model.checkpoint is not None:
        check_unchanged([model.checkpoint], _MEANWHILE, _AGAIN)
    for file, seen in model.seen.items():
        if identity(file) != seen:
            raise StoppedError(f"{file} has changed {_MEANWHILE}", _AGAIN)
