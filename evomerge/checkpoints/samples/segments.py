"""Draws runs of elements from a tensor, and reads them out of its file: of a 70-billion model some megabytes."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.headers import FLOATS, SIZES, QuantizedTensor, TensorInfo
from evomerge.checkpoints.lora_steps import Change, LowRank
from evomerge.errors import InputError

Floats = NDArray[np.float32]
Places = NDArray[np.int64]
_STORED = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


@dataclass(frozen=True)
class Drawing:
    """How much of each tensor is read.

    whole: tensors of so many elements, or fewer, are read whole.
    segments: runs that are read of a larger one.
    length: elements of a run.
    """

    whole: int = 1 << 16
    segments: int = 64
    length: int = 256

    def for_tensors(self, count: int) -> Drawing:
        """The drawing for a model of so many tensors: thousands of experts are read in fewer runs each, so that the
        whole stays a matter of seconds."""
        return Drawing(self.whole, max(4, min(self.segments, _MOST_SEGMENTS // max(1, count))), self.length)


_MOST_SEGMENTS = 48_000


@dataclass(frozen=True)
class Runs:
    """Runs of elements of a flattened tensor.

    starts: [runs], the first element of each.
    length: elements of a run.
    of: elements of the whole tensor.
    """

    starts: Places
    length: int
    of: int

    @property
    def whole(self) -> bool:
        """Whether they are all of the tensor."""
        return self.length == self.of


def generator(name: str, salt: str = "") -> np.random.Generator:
    """A generator of its own for each tensor name, so that equal models give equal samples in any order."""
    return np.random.default_rng(zlib.crc32(f"{salt}/{name}".encode()))


def draw(name: str, elements: int, drawing: Drawing) -> Runs:
    """Stratified runs: the tensor is cut into equal parts, and one run is drawn in each. Small tensors are one run."""
    if elements <= max(drawing.whole, drawing.segments * drawing.length):
        return Runs(np.zeros(1, dtype=np.int64), elements, elements)
    part = elements // drawing.segments
    inside, length = _tiles(generator(name), part, drawing.length, drawing.segments)
    return Runs(part * np.arange(drawing.segments) + inside, length, elements)


def draw_rows(name: str, rows: Sequence[int] | Places, width: int, drawing: Drawing) -> tuple[Places, Places, int]:
    """For a matrix of which some rows are compared: which of `rows` are read, the column at which each run begins, and
    the runs' length."""
    most = max(drawing.segments, drawing.whole // min(width, drawing.length))
    random = generator(name)
    chosen = np.arange(len(rows)) if len(rows) <= most else np.sort(random.choice(len(rows), most, replace=False))
    columns, length = _tiles(random, width, drawing.length, len(chosen))
    return chosen, columns, length


def _tiles(random: np.random.Generator, width: int, length: int, count: int) -> tuple[Places, int]:
    """Draws `count` of the runs that tile `width`, each of `length` or up to twice that: where they begin, and their
    length. Runs that might begin anywhere would read the ends of a row more seldom than its middle."""
    tiles = max(1, width // length)
    length = width // tiles
    # What the tiles leave over, less than one element for each, is left at either end
    shift = random.integers(0, width - tiles * length + 1, count)
    return random.integers(0, tiles, count) * length + shift, length


class Reader:
    """Reads runs of tensors as float32, several threads at a time. Files are opened once, and closed at the end."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._lock, self._one_by_one = Lock(), Lock()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def runs(self, checkpoint: Checkpoint, name: str, starts: Places, length: int) -> Floats:
        """The elements [runs, length] of a tensor: as it is stored, dequantized, or with an adapter in it.

        Raises:
            InputError: its file is damaged, or cannot be read.
        """
        change = checkpoint.change(name)
        info = checkpoint.tensors[name]
        if change is None and not isinstance(info, QuantizedTensor):
            return self._stored(info, starts, length)
        if change is not None and is_plain(change):
            return self._adapted(change, starts, length)
        with self._one_by_one:
            flat = checkpoint.read(name).float().numpy().reshape(-1)  # it can only be computed as a whole
        read: Floats = flat[starts[:, None] + np.arange(length)]
        return read

    def _stored(self, info: TensorInfo, starts: Places, length: int) -> Floats:
        size, file = SIZES[info.dtype], self._descriptor(info.file)
        parts = [os.pread(file, length * size, info.start + int(start) * size) for start in starts]
        data = b"".join(parts)
        if len(data) != len(starts) * length * size:
            raise InputError(f"{info.file} is damaged: it has become shorter", "copy or download it again")
        return decoded(data, info.dtype).reshape(len(starts), length)

    def _adapted(self, change: Change, starts: Places, length: int) -> Floats:
        """The runs of W + s B A, rounded to the result's dtype, without computing the rest of it."""
        columns = change.info.shape[1]
        values = self._stored(change.source, starts, length)
        rows, at = np.unique((starts[:, None] + np.arange(length)) // columns, return_inverse=True)
        columns_at = (starts[:, None] + np.arange(length)) % columns
        for step in change.steps:
            assert isinstance(step, LowRank)
            a, b = self._matrix(step.a), self._matrix(step.b)
            changed = a[:, rows].T @ b.T if step.transposed else b[rows] @ a
            values = values + np.float32(step.scale) * changed[at.reshape(values.shape), columns_at]
        return rounded(values, change.info.dtype)

    def _matrix(self, info: TensorInfo) -> Floats:
        return self._stored(info, np.zeros(1, dtype=np.int64), info.elements).reshape(info.shape)

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._open:
                try:
                    self._open[file] = os.open(file, os.O_RDONLY)
                except OSError as error:
                    problem = f"{file} cannot be read ({error.strerror or error})"
                    raise InputError(problem, "check the path and its permissions") from None
            return self._open[file]


def is_plain(change: Change) -> bool:
    """Whether an adapter's change can be computed element by element: low ranks on a stored matrix, or none."""
    stored = change.source.shape == change.info.shape and not isinstance(change.source, QuantizedTensor)
    return stored and all(isinstance(step, LowRank) and step.magnitude is None for step in change.steps)


def is_here(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor's files are on this machine: of a model on the hub, headers are fetched without the weights."""
    return all(file.is_file() for file in checkpoint.tensors[name].files)


def is_costly(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the whole tensor has to be computed for any of its elements."""
    change = checkpoint.change(name)
    return isinstance(checkpoint.tensors[name], QuantizedTensor) if change is None else not is_plain(change)


def decoded(data: bytes, dtype: str) -> Floats:
    """Stored floats as float32."""
    assert dtype in FLOATS
    stored = np.frombuffer(data, dtype=_STORED[dtype])
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def rounded(values: Floats, dtype: str) -> Floats:
    """The nearest numbers that a dtype has (ties to even), as float32."""
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return values.astype(np.float32)
