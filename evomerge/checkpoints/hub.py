"""Fetches checkpoints from the Hugging Face hub: a name with a revision becomes a folder and its commit.

Weights are fetched when they are read. Until then a file is known by its header alone, which is asked for by its range
of bytes: everything that headers show is checked before gigabytes are downloaded, and a shard that nothing reads is not
downloaded at all. A file is expected at its place in the hub's cache, and arrives there at the first read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from threading import Lock
from typing import Any

from evomerge.checkpoints.headers import TensorInfo, check_length, parse_header, read_header
from evomerge.checkpoints.identity import note_arrival
from evomerge.checkpoints.pickled import check_allowed
from evomerge.errors import InputError, UnreachableError, Where
from evomerge.safety.read import is_there, read_object

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WANTED = [
    "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "*.spm", "*.tiktoken", "*.codes", "*.bpe", "*.tokenizer"
]  # fmt: skip
_INDEX = "model.safetensors.index.json"
_PICKLED = ["pytorch_model*.bin", "adapter_model.bin"]
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_FIRST = 100_000
"""Bytes of the first request: most headers are shorter."""
_AT_ONCE = 8
_SIZE = re.compile(r"bytes \d+-\d+/(\d+)")
_expected: dict[Path, _Source] = {}
_locks: dict[Path, Lock] = {}
_UNWANTED = ["*/*", "*.bin", "*.pt", "*.pth", "*.py", "consolidated*"]


def looks_like_hub_id(name: str) -> bool:
    """Whether the text can be a hub id: ``name`` or ``owner/name``."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith((".yaml", ".yml", ".json"))


def split_revision(reference: str) -> tuple[str, str | None]:
    """``name@revision`` -> (name, revision)."""
    name, _, revision = reference.partition("@")
    return name, revision or None


def fetch(
    name: str, revision: str | None, where: Where | None = None, wanted: Sequence[str] = _WANTED
) -> tuple[Path, str]:
    """Download (or find in the hub's cache) the configuration and tokenizer files, or those that `wanted` names, as
    patterns. By default the weights are expected: they are downloaded when they are read. Pickled ones, where there are
    no others and they may be read, are downloaded now.

    Returns:
        The local folder, and the commit hash that it holds.

    Raises:
        UnreachableError: it is not in the cache, and the hub cannot be asked.
        InputError: no such repository or revision, or its weights are pickled, and that is not allowed.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    shown = f"{name}@{revision}" if revision else name
    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=list(wanted), ignore_patterns=_UNWANTED)
        )
    except RevisionNotFoundError:
        raise InputError(f"{name} has no revision {revision!r} on the hub", "correct it", where) from None
    except RepositoryNotFoundError:
        problem = f"there is no folder and no hub repository {shown}"
        raise InputError(problem, "correct the name, or log in if it is private", where) from None
    except Exception as error:  # the network can fail with anything; the user needs one line
        problem = f"there is no folder {shown}, and the hub cannot be reached ({_reason(error)})"
        raise UnreachableError(problem, "correct the path, or download the model while online", where) from None
    for file in _weights(folder, name, where) if wanted is _WANTED else ():
        if not (folder / file).exists():
            _expect(folder / file, _Source(name, folder.name, file))
    return folder, folder.name


def _weights(folder: Path, name: str, where: Where | None) -> list[str]:
    """The files of weights that a repository has: the shards of its index, else one for a model or an adapter.
    Downloads pickled ones, if there are no others. InputError if these may not be read, or the hub cannot be asked."""
    from huggingface_hub import list_repo_files

    if (folder / _INDEX).is_file():
        shards = read_object(folder / _INDEX).get("weight_map")
        files = set(shards.values()) if isinstance(shards, dict) else set()
        return sorted(file for file in files if isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file))
    if any(any(folder.glob(pattern)) for pattern in ("*.safetensors", *_PICKLED)):
        return []
    try:
        there = [file for file in list_repo_files(name, revision=folder.name) if "/" not in file]
    except Exception as error:
        problem = f"the weights of {name} are not in the cache, and the hub cannot be reached ({_reason(error)})"
        raise UnreachableError(problem, "download the model while online", where) from None
    if not any(file.endswith(".safetensors") for file in there):
        _take_pickled(folder, name, there, where)
    return [file for file in _WEIGHTS if file in there]


def _take_pickled(folder: Path, name: str, files: Sequence[str], where: Where | None) -> None:
    """Downloads the pickled weights among the `files` of a repository that has no others. InputError if these may not
    be read, or the hub cannot be reached."""
    from huggingface_hub import snapshot_download

    pickled = [file for file in files if any(fnmatch(file, pattern) for pattern in _PICKLED)]
    if not pickled:
        return
    check_allowed(name, where=where)
    try:
        snapshot_download(name, revision=folder.name, allow_patterns=pickled)
    except Exception as error:
        raise _failed(_Source(name, folder.name, pickled[0]), error, where) from None


@dataclass(frozen=True)
class _Source:
    """A file of a repository on the hub."""

    repository: str
    commit: str
    name: str


def _expect(file: Path, source: _Source) -> None:
    """Remember where a file that is not here yet comes from."""
    _expected[file] = source
    _locks.setdefault(file, Lock())


def is_known(file: Path, where: Where | None = None) -> bool:
    """Whether a file is here, or is expected. InputError as for `is_there`."""
    return is_there(file, where) or file in _expected


def headers(files: Iterable[Path], where: Where | None = None) -> list[dict[str, TensorInfo]]:
    """The headers of files that are here or expected. InputError as for `read_header`, or if the hub fails."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda file: header(file, where), files))


def header(file: Path, where: Where | None = None) -> dict[str, TensorInfo]:
    """`headers` of one file."""
    source = _expected.get(file)
    if source is None or is_there(file, where):
        return read_header(file, where)
    start, size = _range(source, 0, _FIRST, where)
    length: int = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    check_length(file, length, where)
    text = start[8 : 8 + length]
    if len(text) < length:
        text += _range(source, len(start), 8 + length, where)[0]
    return parse_header(file, text, length, size, where)


def arrive(file: Path, where: Where | None = None) -> None:
    """Download a file that is expected and not here. InputError if that fails."""
    source = _expected.get(file)
    if source is None:
        return
    with _locks[file]:
        if file not in _expected:
            return
        if not is_there(file, where):
            _download(source, file, where)
            note_arrival(file)
        del _expected[file]


def _download(source: _Source, file: Path, where: Where | None) -> None:
    from huggingface_hub import hf_hub_download

    # The cache that the folder is in: models--owner--name/snapshots/commit
    cache = file.parents[3]
    try:
        hf_hub_download(source.repository, source.name, revision=source.commit, cache_dir=cache)
    except Exception as error:  # the network can fail with anything; the user needs one line
        raise _failed(source, error, where) from None


def _range(source: _Source, start: int, stop: int, where: Where | None) -> tuple[bytes, int]:
    """The bytes of a file from `start` to `stop` (exclusive; fewer where it is shorter), and its size."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(source.repository, source.name, revision=source.commit)
    asked: dict[str, Any] = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
    try:
        response = get_session().get(url, headers=asked)
        hf_raise_for_status(response)
        told = _SIZE.fullmatch(response.headers.get("Content-Range", ""))
        content: bytes = response.content
    except Exception as error:
        raise _failed(source, error, where) from None
    if told is None:  # a server that knows no ranges sends everything
        return content[start:stop], len(content)
    return content, int(told[1])


def _failed(source: _Source, error: Exception, where: Where | None) -> UnreachableError:
    problem = f"{source.name} of {source.repository} cannot be fetched from the hub ({_reason(error)})"
    return UnreachableError(problem, "run the same command again, or download the model first", where)


def _reason(error: Exception) -> str:
    """The first line of an error."""
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
