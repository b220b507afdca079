"""Keeps decompositions of deltas in a folder, for later searches and merges: that of a large matrix takes a minute.

A file is named by all that its bits depend on: the fingerprints of both stored tensors, what was asked for, the
libraries, and the kind of processor. It is safetensors, with the digest of what it holds. One that is damaged or not
ours is as good as none. Files are written whole, so that many processes can share the folder.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from evomerge.checkpoints.headers import read_header
from evomerge.checkpoints.read import read_tensor
from evomerge.errors import InputError
from evomerge.safety.durable import write_whole

FOLDER = "EVOMERGE_CACHE"
"""The environment variable that names the folder of caches."""

LIMIT = 20_000_000_000
"""The most bytes of all files in the folder."""

_SPARE = 1_000_000_000
"""Bytes of the disk that are left to others."""

_DIGEST = "digest"
_OURS = re.compile(r"\.?[0-9a-f]{64}\.safetensors(\.\d+)?")
"""A file of ours, or what is left of one whose writer was killed."""


class FactorCache:
    """Tensors by a text that says all that they depend on. Threads and processes may share a folder."""

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        """`folder`: by default `default_folder()`. `limit`: the most bytes in it; the least recently used go first."""
        self.folder, self._limit = folder or default_folder(), limit
        self._writing = threading.Lock()
        self._explained = False

    def __call__(self, text: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The tensors of a text: from the folder, else those that `make` gives, which are then kept. A folder that
        cannot be read or written costs nothing else."""
        key = _key(text)
        file = self._file(key)
        known = _read(file, key)
        if known is not None:
            return known
        made = make()
        with self._writing:
            try:
                self._write(file, save({**made, _DIGEST: _digest(key, made)}))
            except OSError as error:
                self._explain(error)
        return made

    def __contains__(self, text: str) -> bool:
        """Whether there is a file for the tensors of a text. It may turn out to be damaged."""
        return os.path.isfile(self._file(_key(text)))

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _write(self, file: Path, content: bytes) -> None:
        """Writes a file, if it fits the limit, after others have made room. Raises OSError."""
        if len(content) > self._limit:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room(len(content))
        if shutil.disk_usage(self.folder).free < len(content) + _SPARE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(file, content)

    def _make_room(self, count: int) -> None:
        """Removes files of ours, the least recently used first, until so many bytes more are within the limit."""
        files = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process makes room as well
                if _OURS.fullmatch(file.name):
                    status = file.lstat()
                    files.append((status.st_mtime_ns, status.st_size, file))
        excess = sum(size for _, size, _ in files) + count - self._limit
        for _, size, file in sorted(files):
            if excess <= 0:
                break
            file.unlink(missing_ok=True)
            excess -= size

    def _explain(self, error: OSError) -> None:
        if not self._explained:
            self._explained = True
            reason = error.strerror or error
            logging.getLogger(__name__).warning("%s keeps no decompositions (%s)", self.folder, reason)


def default_folder() -> Path:
    """``$EVOMERGE_CACHE/factors``, else ``evomerge/factors`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``."""
    own, shared = os.environ.get(FOLDER), os.environ.get("XDG_CACHE_HOME", "")
    if own:
        return Path(own).absolute() / "factors"
    # A relative path is to be ignored (XDG Base Directory Specification 0.8).
    caches = Path(shared if os.path.isabs(shared) else os.path.expanduser("~/.cache"))
    # Who has no home has no such folder either: nothing is kept.
    return (caches if caches.is_absolute() else Path(os.devnull)) / "evomerge" / "factors"


def _key(text: str) -> str:
    return hashlib.sha256(f"{_machine()}\n{text}".encode()).hexdigest()


def _read(file: Path, key: str) -> Mapping[str, Tensor] | None:
    """The tensors that were kept under a key; None where there are none, or not these."""
    try:
        tensors = {name: read_tensor(info) for name, info in read_header(file).items()}
    except InputError:
        return None
    digest = tensors.pop(_DIGEST, None)
    if digest is None or digest.tolist() != _digest(key, tensors).tolist():
        return None
    with suppress(OSError):
        os.utime(file)  # it was used
    return tensors


def _digest(key: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """sha256 of a key and tensors, as a tensor of 32 bytes."""
    whole = hashlib.sha256(key.encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return torch.tensor(list(whole.digest()), dtype=torch.uint8)


@cache
def _machine() -> str:
    """What else decides on the bits of linear algebra: torch, how it was built, and the kind of processor."""
    name = platform.processor()
    with suppress(OSError):  # Linux tells more
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line for line in lines if line.startswith("model name")), name)
    return "\n".join([torch.__version__, torch.__config__.show(), platform.machine(), name])
