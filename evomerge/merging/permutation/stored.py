"""A model on disk whose units can be permuted: a checkpoint folder, or a safetensors file of tensors alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS, TensorInfo, read_header
from evomerge.checkpoints.identity import Identity, identity
from evomerge.checkpoints.read import read_tensor
from evomerge.checkpoints.structure import is_counter
from evomerge.errors import InputError, Where
from evomerge.merging.permutation.families import specification_for
from evomerge.merging.permutation.specification import Specification
from evomerge.merging.permutation.symmetries import Symmetries
from evomerge.safety.paths import absolute

if TYPE_CHECKING:
    from torch import Tensor

ENDING = ".safetensors"
_IN_MEMORY = 0.5
"""The share of the free memory that both models may take; if they are larger, tensors are read for each use."""


@dataclass(frozen=True)
class StoredModel:
    """A model by its headers.

    Attributes:
        name: as it was given.
        tensors: by name.
        config: config.json; empty where there is none.
        checkpoint: the opened folder; None for a file.
        seen: the identity of a file of tensors when it was opened.
    """

    name: str
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    checkpoint: Checkpoint | None = None
    seen: Mapping[Path, Identity] = field(default_factory=dict)
    where: Where | None = None

    @classmethod
    def open(cls, reference: str | Path, where: Where | None = None) -> StoredModel:
        """Opens a folder, a hub id, or a safetensors file. InputError if it is none."""
        path = absolute(reference, where=where)
        if path.suffix == ENDING and path.is_file():
            found = identity(path)
            return cls(str(reference), read_header(path, where), {}, None, {path: found} if found else {}, where)
        return cls.of(Checkpoint.open(str(reference), where), where)

    @classmethod
    def of(cls, checkpoint: Checkpoint, where: Where | None = None) -> StoredModel:
        """An opened checkpoint."""
        return cls(checkpoint.reference, checkpoint.tensors, checkpoint.config, checkpoint, where=where)

    @property
    def bytes(self) -> int:
        return sum(info.bytes for info in self.tensors.values())

    @property
    def files(self) -> list[Path]:
        """All of its files."""
        return self.checkpoint.files() if self.checkpoint else list(self.seen)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """One tensor, as it is stored."""
        if self.checkpoint is not None:
            return self.checkpoint.read(name)
        return read_tensor(self.tensors[name], self.where)


class StoredWeights(Mapping[str, "Tensor"]):
    """The tensors of a model on disk, read when they are asked for, and kept where `keep`."""

    def __init__(self, model: StoredModel, keep: bool) -> None:
        self._model, self._keep = model, keep
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        tensor = self._model.read(name)
        if self._keep:
            self._kept[name] = tensor
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.tensors)

    def __len__(self) -> int:
        return len(self._model.tensors)


def weights_of(*models: StoredModel) -> list[StoredWeights]:
    """The weights of models: kept in memory after they are read, if all of them have room."""
    import psutil  # type: ignore[import-untyped]

    keep = sum(model.bytes for model in models) < _IN_MEMORY * psutil.virtual_memory().available
    return [StoredWeights(model, keep) for model in models]


def shared_symmetries(
    one: StoredModel, other: StoredModel, file: Path | None = None, where: Where | None = None
) -> tuple[Specification, Symmetries]:
    """The specification of two models, and what it says of `other`. `file`: a specification of the user's.

    Raises:
        InputError: they cannot be aligned: they are of different architectures or shapes, an adapter, quantized, or
            without a specification.
    """
    for model in (one, other):
        _check_plain(model, where)
    kinds = [model.config.get("model_type") for model in (one, other)]
    if kinds[0] != kinds[1]:
        words = [kind or "a model without a configuration" for kind in kinds]
        problem = f"{other.name} is {words[1]}, and {one.name} is {words[0]}: they cannot be aligned"
        raise InputError(problem, "align models of one architecture", where)
    _check_shapes(one, other, where)
    specification = specification_for(other.shapes, other.config, file, where)
    symmetries = specification.over(other.shapes, other.config, where)
    if not symmetries.groups:
        raise InputError(f"the specification {specification.name} moves nothing of {other.name}", "name groups", where)
    return specification, symmetries


def _check_plain(model: StoredModel, where: Where | None) -> None:
    """InputError for tensors that are computed when they are read, and whose rows cannot be moved where they lie."""
    checkpoint = model.checkpoint
    if checkpoint is not None and any(map(checkpoint.is_computed, checkpoint.tensors)):
        problem = f"{model.name} is a LoRA adapter, which belongs to its base's order of units: it cannot be aligned"
        raise InputError(problem, "merge it into its base first, if the base is another model's", where)
    if checkpoint is not None and checkpoint.quantization is not None:
        problem = f"{model.name} is quantized ({checkpoint.quantization.words}): it cannot be aligned"
        raise InputError(problem, "write it in 16 bits first (`evomerge merge` of it alone)", where)
    strange = next(
        (n for n, i in model.tensors.items() if i.dtype not in FLOATS and i.shape and not is_counter(n)), None
    )
    if strange is not None:
        problem = f"{strange} of {model.name} is of {model.tensors[strange].dtype}, and no weight"
        raise InputError(problem, "remove it, or give a model of floating-point weights", where)


def _check_shapes(one: StoredModel, other: StoredModel, where: Where | None) -> None:
    mine, its = one.shapes, other.shapes
    for name in (*its, *mine):
        if mine.get(name) != its.get(name):
            texts = [str(list(s[name])) if name in s else "not there" for s in (its, mine)]
            problem = f"{name} is {texts[0]} in {other.name}, and {texts[1]} in {one.name}: they cannot be aligned"
            raise InputError(problem, "align models of one architecture and size, stored alike", where)
