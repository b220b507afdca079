"""The candidate as a folder, for programs that load one: in memory where there is room."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from evomerge.checkpoints.pickled import are_allowed
from evomerge.errors import InputError, TrialError
from evomerge.merging.disk.record import RECORD, read_record
from evomerge.merging.disk.stream import merge
from evomerge.safety.own_folder import OwnFolder
from evomerge.scoring.candidate import Candidate

_MEMORY = Path("/dev/shm")
_PREFIX, _MODEL = "evomerge-candidate-", "model"
_BYTES, _REST = 4, 64 << 20
"""Bytes of a parameter, at most; of what is written besides."""


class CandidateFolder:
    """Writes the latest candidate when it is asked for; the folder of the one before is gone then."""

    def __init__(self) -> None:
        self._candidate: Candidate | None = None
        self._folder: OwnFolder | None = None

    def become(self, candidate: Candidate) -> None:
        """Takes in the candidate that is asked for from now on."""
        if self._candidate is None or candidate.digest != self._candidate.digest:
            self._clear()
        self._candidate = candidate

    def path(self) -> Path:
        """The folder with the candidate's checkpoint, as `evomerge.merge` writes it. TrialError where it cannot be
        written, or has other weights than those in memory."""
        assert self._candidate is not None, "no candidate yet"
        if self._folder is None or not (self._folder.path / _MODEL).is_dir():
            self._clear()
            self._write(self._candidate)
        assert self._folder is not None
        return self._folder.path / _MODEL

    def scratch(self, written: bool = True) -> Path:
        """A folder beside it for what a program reads and writes. `written`: whether the checkpoint is needed, too."""
        if written:
            self.path()
        elif self._folder is None:
            self._folder = _made(_REST)
        assert self._folder is not None
        return Path(tempfile.mkdtemp(dir=self._folder.path))

    def _write(self, candidate: Candidate) -> None:
        self._folder = _made(candidate.size["parameters"] * _BYTES + _REST)
        try:
            folder = merge(
                candidate.recipe,
                self._folder.path / _MODEL,
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

    def _clear(self) -> None:
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


def _made(size: int) -> OwnFolder:
    """A new folder where so many bytes fit."""
    memory = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > size
    return OwnFolder(_PREFIX, _MEMORY if memory else None)
