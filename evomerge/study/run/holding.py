"""One driver for each study of a PostgreSQL server, from whatever machine and run folder: an advisory lock
(PostgreSQL's documentation, section 13.3.5) that its connection holds.

The server lets go of the lock when it loses the connection, which it may do before this process notices. So the lock is
looked at before each write. Where it was lost, it is taken again, and the study is looked at: its `driver` names who
took the lock last, and if that is somebody else, this process has lost the study and stops.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from optuna.storages import BaseStorage

from evomerge.errors import BusyError, StoppedError
from evomerge.interrupts import deferred
from evomerge.study.run.database import cause_of, is_lost

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DRIVER = "evomerge:driver"
"""The system attribute of a study that names the lock's last owner."""

PATIENCE, _PAUSE = 120.0, 1.0
"""Seconds for which a server may be away before the search ends, and between two tries to reach it."""

_TRIES = 10
"""How often a lock is asked for that the lost connection of this process still holds."""


class Hold:
    """Holds a study in a storage that only the run's folder guards: a journal, an SQLite file."""

    def mark(self, storage: BaseStorage, study: int) -> None:
        """Takes the study that is now there."""

    def write(self, write: Callable[[], T], written: Callable[[], T | None]) -> T:
        """Does a write. Interruptions wait for it.

        Args:
            write: does it, and returns what is kept of it.
            written: returns that where the write stands in the storage already, though its connection was lost; else
                None.
        """
        with deferred():
            return write()


class AdvisoryLock(Hold):
    """Holds a study by the lock of its name. A write waits while the server is away, for up to `PATIENCE` seconds."""

    def __init__(self, engine: Engine, name: str, warn: Callable[[str], None]) -> None:
        """Takes the lock. BusyError, naming the holder, where another process has it."""
        self._engine, self._name, self._warn = engine, name, warn
        self._key = int.from_bytes(hashlib.sha256(f"evomerge/{name}".encode()).digest()[:8], "big", signed=True)
        self._token = uuid.uuid4().hex
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._owner = f"evomerge {os.getpid()} since {since} on {platform.node()}"[:63]  # the server cuts it there
        self._sure = True
        self._marked: tuple[BaseStorage, int] | None = None
        self._connection = self._connected()
        if not self._take():
            holder = _process(self._holder())
            self.close()
            raise BusyError(f"the study {name!r} in the storage is held by {holder}", "wait for it, or stop it")

    def mark(self, storage: BaseStorage, study: int) -> None:
        storage.set_study_system_attr(study, _DRIVER, self._token)
        self._marked = storage, study

    def write(self, write: Callable[[], T], written: Callable[[], T | None]) -> T:
        since: float | None = None
        while True:
            try:
                with deferred():
                    self._check()
                    found = None if since is None else written()
                    return write() if found is None else found
            except Exception as error:
                if not is_lost(error):
                    raise
                if since is None:
                    since = time.monotonic()
                    self._warn(f"the storage does not answer ({cause_of(error)}); up to {PATIENCE:g} s are waited")
                elif time.monotonic() - since > PATIENCE:
                    raise
                logger.info("the storage does not answer: %s", cause_of(error))
            time.sleep(_PAUSE)

    def close(self) -> None:
        with suppress(Exception):  # a server that is gone holds no lock
            self._connection.close()
        with suppress(Exception):
            self._engine.dispose()

    def _connected(self) -> Connection:
        """A connection that names this process to others, and to the server's administrator."""
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._ask(connection, "SELECT set_config('application_name', :name, false)", name=self._owner)
        return connection

    @staticmethod
    def _ask(connection: Connection, query: str, **values: Any) -> Any:
        import sqlalchemy

        return connection.execute(sqlalchemy.text(query), values).scalar()

    def _take(self) -> bool:
        return bool(self._ask(self._connection, "SELECT pg_try_advisory_lock(:key)", key=self._key))

    def _holder(self) -> str:
        """The name of the connection that holds the lock; empty where none does, or it may not be known."""
        key = self._key % 2**64
        name = self._ask(
            self._connection,
            "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' "
            "AND granted AND classid = :high AND objid = :low AND objsubid = 1",
            high=key >> 32,
            low=key % 2**32,
        )
        return str(name or "")

    def _check(self) -> None:
        """Sees that the lock is still held, and takes it again where its connection was lost. StoppedError where
        another process has taken the study meanwhile, the driver's error where the server does not answer."""
        if self._sure and self._answers():
            return
        self._sure = False
        with suppress(Exception):
            self._connection.close()
        self._connection = self._connected()
        taken = self._take_again()
        if not taken or not self._is_mine():
            taker = _process("" if taken else self._holder())
            problem = f"the connection to the storage was lost, and {taker} took the study {self._name!r} meanwhile"
            raise StoppedError(problem, "see which of both is to go on; every finished trial is kept")
        self._sure = True

    def _answers(self) -> bool:
        try:
            return not self._connection.invalidated and self._ask(self._connection, "SELECT 1") == 1
        except Exception as error:
            if not is_lost(error):
                raise
            return False

    def _take_again(self) -> bool:
        """Takes the lock. The server may not have noticed that the former connection was lost: it is ended."""
        for _ in range(_TRIES):
            if self._take():
                return True
            if self._holder() != self._owner:
                return False
            self._ask(
                self._connection,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = :name AND pid <> pg_backend_pid()",
                name=self._owner,
            )
            time.sleep(_PAUSE)
        return False

    def _is_mine(self) -> bool:
        """Whether nobody took the study since this process did."""
        if self._marked is None:
            return True
        storage, study = self._marked
        return bool(storage.get_study_system_attrs(study).get(_DRIVER) == self._token)


def _process(name: str) -> str:
    return f"process {name.removeprefix('evomerge ')}" if name.startswith("evomerge ") else "another process"


@contextmanager
def held(storage: BaseStorage, name: str, warn: Callable[[str], None]) -> Iterator[Hold]:
    """Holds the study of that name against other processes, as far as the storage can. BusyError where one has it."""
    engine = getattr(getattr(storage, "_backend", None), "engine", None)
    if engine is None or engine.dialect.name != "postgresql":
        yield Hold()
        return
    lock = AdvisoryLock(engine, name, warn)
    try:
        yield lock
    finally:
        lock.close()
