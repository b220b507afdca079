"""The run's journal: Optuna's journal file (`optuna.storages.journal`), with a digest in each line.

Each line ends with the digest of everything before that in the file. So a line that was changed, lost, doubled or moved
is found when the journal is opened. Optuna's own tools read the file as any other journal. Lines without a digest, of
older versions and of other tools, are taken as they are, and the next digest covers them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock

from evomerge.errors import InputError
from evomerge.safety.durable import named, sync_folder, write_whole

LONGEST = 256 << 20
"""Bytes of a line. A trial's line holds its recipe: some kilobytes, for the largest models a megabyte."""

_MARK = b',"sum":"'
_HEX = 16
_ENDED = re.compile(rb'"op_code":6,.*"trial_id":(\d+)')
"""The operation that ends a trial, as Optuna numbers it."""

_SCORED = re.compile(rb'"trial_id":(\d+),"user_attr":\{"objective":')
"""What ends a reference before its floors are known (`Store.end`)."""


class DamagedJournal(InputError):
    """A journal with a line that is not as it was written.

    Attributes:
        intact: how many lines before it are as they were written.
        offset: the bytes of these.
        lost: how many trials ended behind them.
    """

    def __init__(self, file: Path, line: int, what: str, intact: int, offset: int, lost: int) -> None:
        self.intact, self.offset, self.lost = intact, offset, lost
        since = "" if line == intact + 1 else f", or one before it since line {intact + 1}"
        mend = "restore it from a copy"
        if intact:
            trials = "1 trial" if lost == 1 else f"{lost} trials"
            mend += f", or keep its first {intact} lines and resume, which scores {trials} again"
        super().__init__(f"{file} is damaged: line {line} {what}{since}", mend)


@dataclass
class _Place:
    """How far a file was read: the number of lines and bytes, and the digest of these."""

    lines: int = 0
    offset: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, line: bytes) -> None:
        self.lines += 1
        self.offset += len(line)
        self.digest.update(line)

    def copy(self) -> _Place:
        return _Place(self.lines, self.offset, self.digest.copy())


class Journal(BaseJournalBackend):
    """Reads and appends lines of a journal. A last line that was not written whole does not count, and the next append
    replaces it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = JournalFileSymlinkLock(str(file))
        if not file.exists():
            file.touch()
            sync_folder(file.parent)
        self._read, self._written = _Place(), _Place()
        # The lines and bytes up to the last digest; before the first one, those that were read.
        self._intact = (0, 0)
        self._confirmed = False
        self._together: IO[bytes] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Entries that are written inside are on the disk at its end: the file is locked, opened and synced once."""
        with named(self.file), self._locked(), self._open("r+b") as stream:
            self._catch_up(stream)
            self._together = stream
            try:
                yield
            finally:
                self._together = None
                os.fsync(stream.fileno())

    @property
    def line(self) -> int:
        """The number of the line that was read last."""
        return self._read.lines

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The entries from this number on. DamagedJournal where a line is not as it was written."""
        if log_number_from < self._read.lines:
            self._read = _Place()
        with nullcontext(self._together) if self._together is not None else self._open("rb") as stream:
            stream.seek(self._read.offset)
            while (line := stream.readline(LONGEST)).endswith(b"\n"):
                entry = self._checked(line)
                self._read.add(line)
                if self._read.lines > log_number_from:
                    yield entry
            if len(line) == LONGEST:
                raise self.damage(f"has more than {LONGEST >> 20} MB", self._read.lines + 1)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes entries down, durably (inside `together`: at its end)."""
        if self._together is not None:
            self._append(logs, self._together)
            return
        with self.together():
            self.append_logs(logs)

    def _append(self, logs: list[dict[str, Any]], stream: IO[bytes]) -> None:
        stream.truncate(self._written.offset)
        stream.seek(self._written.offset)
        place = self._written.copy()
        for log in logs:
            line = self._with_digest(log, place)
            stream.write(line)
            place.add(line)
        stream.flush()
        self._written = place

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock that Optuna's tools know. That it is gone at the end, as it was held for long, is no fault: no
        other process writes to a run that is held."""
        self._lock.acquire()
        try:
            yield
        finally:
            try:
                self._lock.release()
            except RuntimeError as error:
                if isinstance(error.__context__, OSError) and error.__context__.errno != errno.ENOENT:
                    raise error.__context__ from None

    def _open(self, mode: str) -> IO[bytes]:
        if not self.file.is_file():
            raise InputError(f"{self.file} is no file", "restore it from a copy")
        return self.file.open(mode)

    def _catch_up(self, stream: IO[bytes]) -> None:
        """Takes in the whole lines that stand behind what was written last: of another session, or another tool."""
        stream.seek(self._written.offset)
        for line in stream:
            if line.endswith(b"\n"):
                self._written.add(line)

    @staticmethod
    def _with_digest(log: dict[str, Any], place: _Place) -> bytes:
        head = json.dumps(log, separators=(",", ":"))[:-1].encode()
        return head + _MARK + _digest(place, head) + b'"}\n'

    def _checked(self, line: bytes) -> dict[str, Any]:
        """The entry in a line. DamagedJournal."""
        if not self._confirmed:
            self._intact = (self._read.lines, self._read.offset)
        head, mark, tail = line.rpartition(_MARK)
        if mark and len(tail) == _HEX + 3 and tail.endswith(b'"}\n'):
            if tail[:_HEX] != _digest(self._read, head):
                if not self._confirmed:
                    self._intact = (0, 0)  # it may be any line before
                raise self.damage("is not as it was written", self._read.lines + 1)
            self._confirmed = True
            self._intact = (self._read.lines + 1, self._read.offset + len(line))
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise self.damage("cannot be read", self._read.lines + 1) from None
        if not isinstance(entry, dict):
            raise self.damage("is no entry", self._read.lines + 1)
        return entry

    def damage(self, what: str, line: int | None = None) -> DamagedJournal:
        """The error for a line, by default the one that was read last."""
        line = self._read.lines if line is None else line
        # A line that is as it was written, and makes no sense, is no damage that can be cut off.
        intact, offset = self._intact if self._intact[0] < line else (0, 0)
        with self._open("rb") as stream:
            content = stream.read()
        kept, behind = content[:offset], content[offset:]
        ended = {*_ENDED.findall(behind), *_SCORED.findall(behind)} - {*_SCORED.findall(kept)}
        return DamagedJournal(self.file, line, what, intact, offset, len(ended))


def replayed(file: Path) -> JournalStorage:
    """The storage of a journal. InputError where it is damaged."""
    journal = Journal(file)
    try:
        return JournalStorage(journal)
    except (InputError, OSError):
        raise
    except Exception as error:
        raise journal.damage(f"cannot be applied ({type(error).__name__})") from None


def cut(damage: DamagedJournal, file: Path) -> Path:
    """Drops a journal's lines from the damaged one on. Returns the copy of the whole file that is kept beside it."""
    content = file.read_bytes()
    copy = file.with_name(f"{file.name}.damaged")
    write_whole(copy, content)
    write_whole(file, content[: damage.offset])
    return copy


def _digest(place: _Place, head: bytes) -> bytes:
    digest = place.digest.copy()
    digest.update(head)
    shown: str = digest.hexdigest()
    return shown[:_HEX].encode()
