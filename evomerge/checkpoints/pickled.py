"""Finds the tensors of files that torch pickled (`pytorch_model.bin`), where that is allowed, and runs no code of them.

A pickle is a program. torch's own reader of weights (`torch.load` with `weights_only`) carries out those of its steps
that make tensors, and refuses all others. It is given the file mapped into memory, so that no weight is read. The file
is a ZIP archive of one uncompressed entry for each storage (torch/serialization.py, `_save`), so that each tensor is a
row of bytes in it: these are looked up, and read later as those of any other file. A file that is not such an archive
(torch before 1.6) is refused.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from evomerge.checkpoints.headers import SIZES, TensorInfo, is_name
from evomerge.errors import InputError, Where
from evomerge.escape import quoted, shortened
from evomerge.safety.limits import OutOfTime, TimeLimit, memory_limit
from evomerge.safety.read import opened

if TYPE_CHECKING:
    from torch import Tensor

_P = ParamSpec("_P")
_T = TypeVar("_T")
FLAG = "--allow-pickle"
_ALLOWED: ContextVar[bool] = ContextVar("pickles allowed", default=False)
_ARCHIVE, _LOCAL, _LOCAL_BYTES = b"PK\x03\x04", "<26xHH", 30
"""The first bytes of a ZIP archive; where an entry's own header has the lengths of its name and of what follows it, and
how long that header is without both (APPNOTE.TXT, 4.3.7)."""
_MOST_ENTRIES, _LONGEST_PROGRAM = 1_000_000, 64 << 20
"""A model of 100,000 tensors has a program of some 15 MB."""
_SECONDS, _EXTRA = 120.0, 2 << 30
"""For the program: of time, and bytes of memory beside the mapped file."""
_CONVERT = "convert it with from_pretrained(...).save_pretrained(...), which writes safetensors"
_SAFE = "get the model from somebody whom you trust, as safetensors"
_SAVE_AGAIN = "save it again: torch.save(torch.load(file, weights_only=True), file)"


@contextmanager
def pickles_allowed(allowed: bool) -> Iterator[None]:
    """Until the end, pickled weights may be read by this thread, or may not."""
    token = _ALLOWED.set(allowed)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def with_pickles(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorates a function whose argument `allow_pickle` says whether pickled weights may be read while it runs."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with pickles_allowed(bool(kwargs.get("allow_pickle"))):
            return function(*args, **kwargs)

    return call


def allow_pickles(allowed: bool = True) -> None:
    """Pickled weights may be read by this thread from now on, or until the end of `pickles_allowed` around it."""
    _ALLOWED.set(allowed)


def are_allowed() -> bool:
    """Whether pickled weights may be read."""
    return _ALLOWED.get()


def check_allowed(what: str, convert: str = _CONVERT, where: Where | None = None) -> None:
    """InputError where pickled weights may not be read. `what`: has them; `convert`: how to do without."""
    if not are_allowed():
        problem = f"{what} holds pickled weights only, and a pickle is a program"
        raise InputError(problem, f"{convert}, or read it with {FLAG}, which runs none of its code", where)


def read_pickled(file: Path, where: Where | None = None) -> dict[str, TensorInfo]:
    """The tensors of a pickled file, by name, in its order.

    Raises:
        InputError: the file cannot be read, is damaged, holds anything but tensors, or is of an old format.
    """
    # 1. Where each storage's bytes are.
    with opened(file, where) as (stream, size):
        if stream.read(len(_ARCHIVE)) != _ARCHIVE:
            raise InputError(f"{file} is no archive, as torch writes them since 1.6", _SAVE_AGAIN, where)
        try:
            entries = _entries(stream, size)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
            raise _damaged(file, error, where) from None
    # 2. What torch makes of the file.
    state = _loaded(file, size, where)
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{file} is no mapping of names to tensors", _CONVERT, where)
    for name, tensor in state.items():
        problem = _problem(name, tensor)
        if problem is not None:
            raise InputError(f"{file}: {problem}", _CONVERT, where)
    # 3. Which bytes each tensor is.
    first = _first_byte(state, entries)
    if first is None:
        raise InputError(f"{file}: its tensors cannot be found in it", _SAVE_AGAIN, where)
    return {name: _info(tensor, file, first) for name, tensor in state.items()}


def _entries(stream: Any, size: int) -> dict[int, int]:
    """The entries that hold storages: the place of the first byte -> the number of bytes. Raises ValueError where the
    archive is not one that torch writes."""
    found: dict[int, int] = {}
    with zipfile.ZipFile(stream) as archive:
        listed = archive.infolist()
        if len(listed) > _MOST_ENTRIES:
            raise ValueError(f"it has {len(listed)} entries")
        for entry in listed:
            name = entry.filename.partition("/")[2]
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{shortened(entry.filename, 80)} is compressed")
            if name == "data.pkl" and entry.file_size > _LONGEST_PROGRAM:
                raise ValueError(f"its program has {entry.file_size} bytes")
            if name == "byteorder" and archive.read(entry) != b"little":
                raise ValueError("its numbers have another byte order")
            if name.startswith("data/"):
                stream.seek(entry.header_offset)
                start = entry.header_offset + _LOCAL_BYTES + sum(struct.unpack(_LOCAL, stream.read(_LOCAL_BYTES)))
                if start + entry.file_size > size:
                    raise ValueError("it is cut off")
                found[start] = entry.file_size
    return found


def _loaded(file: Path, size: int, where: Where | None) -> Any:
    """What torch's reader of weights makes of the file, mapped into memory."""
    import pickle

    import torch

    try:
        with TimeLimit(_SECONDS), memory_limit(size + _EXTRA):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OutOfTime, MemoryError):
        raise InputError(
            f"{file} takes more than {_SECONDS:g} s or {_EXTRA >> 30} GB to open", _CONVERT, where
        ) from None
    except pickle.UnpicklingError as error:
        reason = re.search(r"(Unsupported|GLOBAL|Trying to)[^\n]*", str(error))
        problem = f"{file} holds more than tensors, and no code of it was run"
        problem += f" ({shortened(reason[0].strip(), 160)})" if reason else ""
        raise InputError(problem, _SAFE, where) from None
    except Exception as error:  # a damaged program can fail with anything
        raise _damaged(file, error, where) from None


def _problem(name: Any, tensor: Any) -> str | None:
    """What keeps an entry of the mapping from being a stored tensor."""
    import torch

    if not isinstance(name, str) or not is_name(name):
        return f"{quoted(name, 60)} is no name of a tensor"
    if not isinstance(tensor, torch.Tensor):
        return f"{name} is no tensor, but {type(tensor).__name__}"
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in SIZES or tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_neg():
        return f"{name} is a tensor of {kind}, {tensor.layout}, on {tensor.device}"
    if not tensor.is_contiguous():
        return f"{name} is a part of another tensor, and does not lie in one row"
    return None


def _first_byte(state: Mapping[str, Tensor], entries: Mapping[int, int]) -> int | None:
    """Where in memory the file begins: there, every storage lies on an entry of its size. None where that is not so, or
    so for several places."""
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in state.values()) if s.nbytes()}
    if not storages:
        return 0
    # Each entry as large as the storage whose size is the rarest is a candidate for it. Where all sizes are equal, a
    # wrong candidate puts the last storage behind the last entry, or the first one before the first.
    lengths = Counter(entries.values())
    pointer, count = min(storages.items(), key=lambda item: (lengths[item[1]], item[0]))
    places = [pointer - start for start, length in entries.items() if length == count]
    ends = [max(storages), min(storages)]
    fitting: list[int] = []
    for place in places:
        if all(entries.get(p - place) == storages[p] for p in chain(ends, storages)):
            fitting.append(place)
        if len(fitting) > 1:
            return None
    return fitting[0] if fitting else None


def _info(tensor: Tensor, file: Path, first: int) -> TensorInfo:
    start = tensor.data_ptr() - first if tensor.numel() else 0
    return TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), file, start)


def _damaged(file: Path, error: Exception, where: Where | None) -> InputError:
    reason = shortened(" ".join(str(error).split()) or type(error).__name__, 160)
    return InputError(f"{file} is damaged ({reason})", "copy or download it again", where)
