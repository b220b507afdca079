"""The candidate as a folder, for programs that load one: in memory where there is room."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from evomerge.checkpoints.pickled import are_allowed
from evomerge.errors import InputError, TrialError
from evomerge.merging.disk.record import RECORD, read_record
from evomerge.merging.disk.stream import merge
from evomerge.scoring.candidate import Candidate

_MEMORY = Path("/dev/shm")
_PREFIX, _LOCK, _MODEL = "evomerge-candidate-", "lock", "model"
_BYTES, _REST = 4, 64 << 20
"""Bytes of a parameter, at most; of what is written besides."""


class CandidateFolder:
    """Writes the latest candidate when it is asked for; the folder of the one before is gone then."""

    def __init__(self) -> None:
        self._candidate: Candidate | None = None
        self._place: Path | None = None
        self._end: weakref.finalize[..., CandidateFolder] | None = None

    def become(self, candidate: Candidate) -> None:
        """Takes in the candidate that is asked for from now on."""
        if self._candidate is None or candidate.digest != self._candidate.digest:
            self._clear()
        self._candidate = candidate

    def path(self) -> Path:
        """The folder with the candidate's checkpoint, as `evomerge.merge` writes it. TrialError where it cannot be
        written, or has other weights than those in memory."""
        assert self._candidate is not None, "no candidate yet"
        if self._place is None or not (self._place / _MODEL).is_dir():
            self._clear()
            self._place = self._written(self._candidate)
        return self._place / _MODEL

    def scratch(self, written: bool = True) -> Path:
        """A folder beside it for what a program reads and writes. `written`: whether the checkpoint is needed, too."""
        if written:
            self.path()
        elif self._place is None:
            self._place = self._made(_REST)
        assert self._place is not None
        return Path(tempfile.mkdtemp(dir=self._place))

    def _written(self, candidate: Candidate) -> Path:
        place = self._made(candidate.size["parameters"] * _BYTES + _REST)
        try:
            folder = merge(
                candidate.recipe,
                place / _MODEL,
                device=candidate.device,
                model_card=False,
                allow_pickle=are_allowed(),
            )
        except InputError as error:
            self._clear()
            raise TrialError(f"the candidate cannot be written for the command: {error.problem}") from error
        found = read_record(folder / RECORD).digest
        if found != candidate.digest:
            self._clear()
            problem = f"the checkpoint for the command has other weights ({found[:12]}) than the model in memory"
            raise TrialError(f"{problem} ({candidate.digest[:12]})")
        return place

    def _made(self, size: int) -> Path:
        """A new folder where so many bytes fit. It stays locked as long as this process lives."""
        memory = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > size
        parent = _MEMORY if memory else Path(tempfile.gettempdir())
        _remove_orphans(parent)
        place = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._end = weakref.finalize(self, _remove, place, lock, os.getpid())
        return place

    def _clear(self) -> None:
        self._place = None
        if self._end is not None:
            self._end()


def _remove(place: Path, lock: int, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked from it
        shutil.rmtree(place, ignore_errors=True)
    os.close(lock)


def _remove_orphans(parent: Path) -> None:
    """Removes the folders of processes that were killed: nobody holds their locks."""
    for place in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(place / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(lock)
