"""Writes a checkpoint so that it is either whole or not there. The steps:

1. Write everything into a hidden folder beside the target (`PartialFolder`), under names that no reader takes for
   weights.
2. Give the shards their names; write the index, config.json and the summary; sync all files and the folder.
3. Rename the folder to the target, or exchange it with the target, and delete what was there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from evomerge.checkpoints.checkpoint import INDEX, NAMED_TEMPLATES, WEIGHTS
from evomerge.checkpoints.config import CONFIG, config_json, without_places
from evomerge.checkpoints.headers import SIZES, WORDS
from evomerge.checkpoints.identity import FileDigest
from evomerge.checkpoints.partial import PartialFolder
from evomerge.errors import FULL, InputError, Where
from evomerge.safety.durable import sync_folder

if TYPE_CHECKING:
    import torch

EVAL_RESULTS = ".eval_results"
"""The folder of a model's scores on public benchmarks, as the hub reads them."""
SHARD_BYTES = 5_000_000_000
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}


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
    """Writes one checkpoint inside a context: `add` every tensor in the order of `layout`, then `text` and `config`. At
    the end the folder takes its place; after an error it is deleted. `seal` may do all but the taking of the place
    before: of several checkpoints, none is there before all are whole.

    Raises:
        InputError: the target cannot be written (`check_target`), or the disk is full.
    """

    def __init__(
        self,
        target: Path,
        layout: Mapping[str, TensorLayout],
        *,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
        where: Where | None = None,
        names: tuple[str, str] = (WEIGHTS, CONFIG),
    ) -> None:
        """`names`: of the file of weights, if there is one only, and of the configuration."""
        self.target, self.layout, self.where = real_folder(target, where), dict(layout), where
        self._weights_name, self._config_name = names
        self._overwrite, self._shards = overwrite, _shards(self.layout, shard_bytes)
        self._expected = [name for shard in self._shards for name in shard]
        self._files = [f"weights-{i:05d}.part" for i in range(len(self._shards))]
        self._stream: IO[bytes] | None = None
        self._hash, self._hashes = hashlib.sha256(), dict[str, FileDigest]()
        self._summary: tuple[str, Callable[[Mapping[str, FileDigest]], str]] | None = None
        self._config: dict[str, Any] = {}
        self._written, self._sealed = 0, False

    @property
    def folder(self) -> Path:
        """Where the files are written."""
        return self._partial.path

    def __enter__(self) -> CheckpointWriter:
        check_target(self.target, self._overwrite, self.where)
        with self._explained():
            self._partial = PartialFolder(self.target)
        try:
            check_target(self.target, self._overwrite, self.where)  # after a killed writer's old folder was put back
            with self._explained():
                check_space([self])
        except BaseException:
            self._partial.drop()
            raise
        return self

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write the next tensor of the layout."""
        expected, layout = self._expected[self._written], self.layout[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        assert (name, tuple(tensor.shape), dtype) == (expected, layout.shape, layout.dtype), (name, expected)
        with self._explained():
            # A tensor that is the first of its shard opens the next file
            shard = next(s for s in self._shards if name in s)
            if name == next(iter(shard)):
                self._open(self._shards.index(shard))
            self._write(_bytes(tensor))
        self._written += 1

    def text(self, name: str, content: str) -> None:
        """Write a small file."""
        self.file(name, content.encode("utf-8"))

    def file(self, name: str, content: bytes) -> None:
        """Write a small file; `name` may be of one in a folder inside. Settings lose the folders that they name."""
        content = without_places(name, content)
        with self._explained():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_bytes(content)
        self._hashes[name] = FileDigest(hashlib.sha256(content).hexdigest(), len(content))

    def config(self, config: Mapping[str, Any]) -> None:
        """Set config.json; it is written last, or not at all if it is empty."""
        self._config = dict(config)

    def summary(self, name: str, write: Callable[[Mapping[str, FileDigest]], str]) -> None:
        """Set a text that is made of the digests of all other files, by name, once these are known."""
        self._summary = (name, write)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.seal()
                check_target(self.target, self._overwrite, self.where)  # it may have appeared meanwhile
                with self._explained():
                    self._partial.put()
        finally:
            self._drop()

    def seal(self) -> None:
        """Complete the hidden folder: names, index, config.json, all on the disk."""
        if self._sealed:
            return
        assert self._written == len(self._expected), "every tensor of the layout must be added"
        names = _final_names(len(self._shards), self._weights_name)
        with self._explained():
            self._close()
            for part, name in zip(self._files, names, strict=True):
                (self.folder / part).rename(self.folder / name)
                self._hashes[name] = self._hashes.pop(part)
            if len(names) > 1:
                self.text(INDEX, json.dumps(self._index(names), indent=2) + "\n")
            if self._config:
                self.text(self._config_name, config_json(self._config))
            if self._summary is not None:
                name, write = self._summary
                self.text(name, write(dict(sorted(self._hashes.items()))))
            for file in self.folder.rglob("*"):
                _sync(file)
            sync_folder(self.folder)
        self._sealed = True

    def _open(self, number: int) -> None:
        self._close()
        self._stream = (self.folder / self._files[number]).open("wb")
        self._write(_header({name: self.layout[name] for name in self._shards[number]}))

    def _write(self, content: bytes | memoryview) -> None:
        assert self._stream is not None
        self._stream.write(content)
        self._hash.update(content)

    def _close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            part, digest = Path(stream.name).name, FileDigest(self._hash.hexdigest(), stream.tell())
            self._hash, self._hashes[part] = hashlib.sha256(), digest
            stream.close()

    def _index(self, names: list[str]) -> dict[str, Any]:
        size = self.bytes
        weight_map = {t: name for name, shard in zip(names, self._shards, strict=True) for t in shard}
        return {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}

    def _drop(self) -> None:
        with suppress(OSError):  # on a full disk closing fails, too
            self._close()
        self._partial.drop()

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(layout.bytes for layout in self.layout.values())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explanation(error) from error

    def _explanation(self, error: OSError) -> InputError:
        number = error.errno
        if number in FULL:
            problem = f"the disk is full: {self.target} could not be written, and nothing of it is left behind"
            return InputError(problem, "free some space, or write elsewhere", self.where)
        if number in (errno.ENOTEMPTY, errno.EEXIST):
            return InputError(f"{self.target} exists and is not empty", _ELSEWHERE, self.where)
        reason = os.strerror(number) if number is not None else str(error)
        return InputError(f"{self.target} cannot be written ({reason})", "write elsewhere", self.where)


def check_space(writers: Iterable[CheckpointWriter]) -> None:
    """InputError if the disks have no room for all checkpoints together."""
    needed: dict[int, tuple[int, CheckpointWriter]] = {}
    for writer in writers:
        device = writer.target.parent.stat().st_dev
        needed[device] = (needed.get(device, (0,))[0] + writer.bytes, writer)
    for need, writer in needed.values():
        free = shutil.disk_usage(writer.target.parent).free
        if need > free:
            problem = f"{writer.target} needs {need / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free"
            raise InputError(problem, "free some space, or write elsewhere", writer.where)


_ELSEWHERE = "name another folder, or remove it first"


def real_folder(target: Path | str, where: Where | None = None) -> Path:
    """The absolute path of a target: where a symbolic link leads to. InputError for a link that leads to itself."""
    try:
        return Path(target).resolve()
    except (OSError, RuntimeError, ValueError):
        raise InputError(f"{target} is no path that can be written", "name a folder", where) from None


def check_target(
    target: Path, overwrite: bool = False, where: Where | None = None, inputs: Iterable[Path] = ()
) -> None:
    """InputError if a checkpoint may not be written to `target`.

    Args:
        target: the folder to write.
        overwrite: replace a checkpoint that is there: a folder with config.json or weights, and without folders in it,
            which no checkpoint needs (a clone's history, the checkpoints of a training). No other folder is replaced.
        where: for the error.
        inputs: files and folders that are read; nothing is written over them.
    """
    target = real_folder(target, where)
    try:
        names = sorted(os.listdir(target)) if target.is_dir() else []
        if target.exists() and not target.is_dir():
            raise InputError(f"{target} is a file", "name a folder", where)
        if target.is_dir():
            _check_place(target, where)
        if names:
            _check_replaced(target, names, overwrite, where)
        standing = next(p for p in (target.parent, *target.parents) if p.exists())
    except OSError as error:
        problem = f"{target} cannot be written ({error.strerror or error})"
        raise InputError(problem, "write elsewhere", where) from None
    if not standing.is_dir():
        raise InputError(f"{target} cannot be written: {standing} is a file", "write elsewhere", where)
    if not os.access(standing, os.W_OK | os.X_OK):
        problem = f"{target} cannot be written: {standing} is a folder that you may not write to"
        raise InputError(problem, "write elsewhere", where)
    for read in inputs:
        if _is_inside(read.resolve(), target):
            problem = f"{target} is to be written, and {read} in it is read" if read.resolve() != target else ""
            raise InputError(problem or f"{target} is read and to be written", "name another folder", where)


def _check_place(target: Path, where: Where | None) -> None:
    """InputError for a folder that cannot be renamed, or that others stand in."""
    if os.path.ismount(target):
        raise InputError(f"{target} is a mount point, which cannot be replaced", "name a folder in it", where)
    for place, what in ((Path.cwd(), "the current folder"), (Path(os.path.expanduser("~")), "your home folder")):
        if _is_inside(place.resolve(), target):
            raise InputError(f"{target} is or holds {what}, so it cannot be replaced", "name a folder in it", where)


def _check_replaced(target: Path, names: list[str], overwrite: bool, where: Where | None) -> None:
    """InputError if a folder with content may not be replaced."""
    folder = next((n for n in names if _is_foreign(target / n)), None)
    checkpoint = any(n == "config.json" or n.endswith(".safetensors") for n in names)
    if checkpoint and folder is None:
        if not overwrite:
            mend = "name another folder, or replace it with --overwrite"
            raise InputError(f"{target} exists and is not empty", mend, where)
    elif not overwrite:
        raise InputError(f"{target} exists and is not empty", _ELSEWHERE, where)
    elif not checkpoint:
        problem = f"{target} holds no checkpoint (no config.json, no weights), so --overwrite does not replace it"
        raise InputError(problem, _ELSEWHERE, where)
    else:
        problem = f"{target} holds the folder {folder}, and --overwrite replaces a checkpoint's files only"
        raise InputError(problem, _ELSEWHERE, where)


def _is_foreign(path: Path) -> bool:
    """Whether a path in a checkpoint is a folder that no checkpoint has: any but those of further chat templates and
    of scores on benchmarks."""
    if not path.is_dir() or path.is_symlink():
        return False
    ending = {NAMED_TEMPLATES: ".jinja", EVAL_RESULTS: ".yaml"}.get(path.name)
    return ending is None or any(f.suffix != ending or not f.is_file() for f in path.iterdir())


def _is_inside(path: Path | str | None, folder: Path) -> bool:
    """Whether a path is the folder, or lies in it."""
    return path is not None and folder in (Path(path), *Path(path).parents)


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


def _final_names(count: int, single: str) -> list[str]:
    return [single] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


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
