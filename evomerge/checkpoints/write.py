"""Writes a checkpoint so that it is either whole or not there. The steps:

1. Write everything into a hidden folder beside the target, under names that no reader takes for weights.
2. Give the shards their names; write the index, then config.json; sync all files and the folder.
3. Rename the folder to the target. An existing target moves away first, and is deleted after that.

A lock file marks a folder that is being written: the next writer of the target deletes the folders of killed ones.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from evomerge.checkpoints.checkpoint import INDEX, WEIGHTS
from evomerge.checkpoints.headers import SIZES, WORDS
from evomerge.errors import InputError, Where

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5_000_000_000
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class TensorLayout:
    """The shape and dtype (by torch's name) of one tensor that will be written."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        size = SIZES[self.dtype]
        for n in self.shape:
            size *= n
        return size


class CheckpointWriter:
    """Writes one checkpoint inside a context: `add` every tensor in the order of `layout`, then `text`, `copy` and
    `config`. At the end the folder takes its place; after an error it is deleted.

    Raises:
        InputError: the target exists and is not empty (unless `overwrite`), or the disk is full.
    """

    def __init__(
        self,
        target: Path,
        layout: Mapping[str, TensorLayout],
        *,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
        where: Where | None = None,
    ) -> None:
        self.target, self.layout, self.where = Path(target).absolute(), dict(layout), where
        self._overwrite, self._shards = overwrite, _shards(self.layout, shard_bytes)
        self._expected = [name for shard in self._shards for name in shard]
        self._files = [f"weights-{i:05d}.part" for i in range(len(self._shards))]
        self._stream: IO[bytes] | None = None
        self._config: dict[str, Any] = {}
        self._written = 0

    def __enter__(self) -> CheckpointWriter:
        check_target(self.target, self._overwrite, self.where)
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            _sweep(self.target)
            self._check_space()
            self.folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.partial-", dir=self.target.parent))
            self._lock = FileLock(_lock_file(self.folder))
            self._lock.acquire(timeout=0)
        except OSError as error:
            raise self._explained(error) from error
        return self

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor of the layout."""
        expected, layout = self._expected[self._written], self.layout[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        assert (name, tuple(tensor.shape), dtype) == (expected, layout.shape, layout.dtype), (name, expected)
        # A tensor that is the first of its shard opens the next file
        shard = next(s for s in self._shards if name in s)
        if name == next(iter(shard)):
            self._open(self._shards.index(shard))
        assert self._stream is not None
        self._stream.write(_bytes(tensor))
        self._written += 1

    def text(self, name: str, content: str) -> None:
        """Write a small file."""
        with (self.folder / name).open("w", encoding="utf-8") as stream:
            stream.write(content)

    def copy(self, file: Path) -> None:
        """Copy a small file under its own name."""
        shutil.copyfile(file, self.folder / file.name)

    def config(self, config: Mapping[str, Any]) -> None:
        """Set config.json; it is written last, or not at all if it is empty."""
        self._config = dict(config)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        except OSError as failed:
            raise self._explained(failed) from failed
        finally:
            self._close()
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.release()
            _lock_file(self.folder).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise self._explained(error) from error

    def _finish(self) -> None:
        assert self._written == len(self._expected), "every tensor of the layout must be added"
        self._close()
        names = _final_names(len(self._shards))
        for part, name in zip(self._files, names, strict=True):
            (self.folder / part).rename(self.folder / name)
        if len(names) > 1:
            self.text(INDEX, json.dumps(self._index(names), indent=2) + "\n")
        if self._config:
            self.text("config.json", json.dumps(self._config, indent=2, ensure_ascii=False) + "\n")
        for file in self.folder.iterdir():
            _sync(file)
        _sync(self.folder)
        os.chmod(self.folder, 0o777 & ~_umask())  # mkdtemp made it private
        self._put()
        _sync(self.target.parent)

    def _put(self) -> None:
        """Rename the folder to the target, in place of an existing one."""
        check_target(self.target, self._overwrite, self.where)  # it may have appeared meanwhile
        if self.target.is_dir() and any(self.target.iterdir()):
            old = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.partial-", dir=self.target.parent))
            self.target.rename(old / "replaced")
            self.folder.rename(self.target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            if self.target.is_dir():
                self.target.rmdir()
            self.folder.rename(self.target)

    def _open(self, number: int) -> None:
        self._close()
        self._stream = (self.folder / self._files[number]).open("wb")
        self._stream.write(_header({name: self.layout[name] for name in self._shards[number]}))

    def _close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.close()

    def _index(self, names: list[str]) -> dict[str, Any]:
        size = sum(layout.bytes for layout in self.layout.values())
        weight_map = {t: name for name, shard in zip(names, self._shards, strict=True) for t in shard}
        return {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}

    def _check_space(self) -> None:
        need = sum(layout.bytes for layout in self.layout.values())
        free = shutil.disk_usage(self.target.parent).free
        if need > free:
            problem = f"{self.target} needs {need / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
            raise InputError(problem, "free some space, or write elsewhere", self.where)

    def _explained(self, error: OSError) -> InputError:
        if error.errno in _FULL:
            problem = f"the disk is full: {self.target} could not be written, and nothing of it is left behind"
            return InputError(problem, "free some space, or write elsewhere", self.where)
        problem = f"{self.target} cannot be written ({error.strerror or error})"
        return InputError(problem, "write elsewhere", self.where)


def check_target(target: Path, overwrite: bool = False, where: Where | None = None) -> None:
    """InputError if a checkpoint may not be written to `target`."""
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file", "name a folder", where)
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise InputError(
            f"{target} exists and is not empty", "name another folder, or replace it by --overwrite", where
        )


def parse_size(text: str, where: Where | None = None) -> int:
    """Bytes from a number with a unit: 5GB, 500M, or mergekit's 5B for 5 GB. Raises InputError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGBT]?)B?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise InputError(f"{text!r} is not a size", "write for example 5GB or 500MB", where)
    return size


def _shards(layout: Mapping[str, TensorLayout], limit: int) -> list[list[str]]:
    """The names of each shard: the tensors in their order; a new shard begins if one would grow over `limit` bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in layout.items():
        if shards[-1] and size + tensor.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.bytes
    return shards


def _final_names(count: int) -> list[str]:
    return [WEIGHTS] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def _header(tensors: Mapping[str, TensorLayout]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, layout in tensors.items():
        entries[name] = {
            "dtype": WORDS[layout.dtype],
            "shape": list(layout.shape),
            "data_offsets": [offset, offset + layout.bytes],
        }
        offset += layout.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors start aligned
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _lock_file(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _sweep(target: Path) -> None:
    """Delete the folders that killed writers of this target left: partial folders whose lock is free."""
    for folder in target.parent.glob(f".{target.name}.partial-*"):
        if folder.is_dir():
            try:
                with FileLock(_lock_file(folder), timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
            except Timeout:
                continue
            _lock_file(folder).unlink(missing_ok=True)
