"""A database in place of a run's journal (Optuna's RDBStorage): its URL, how it is opened, and what its errors say.

A run remembers the URL without its password. That comes from the environment variable `EVOMERGE_STORAGE_PASSWORD`, or,
for PostgreSQL, from where its own tools look (PGPASSWORD, ~/.pgpass).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import InputError, Where
from evomerge.safety.paths import absolute

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy import URL

PASSWORD = "EVOMERGE_STORAGE_PASSWORD"

_FLAG, _SQLITE = Where("--storage"), "sqlite:///"
_POSTGRES = ("postgres://", "postgresql://")
_DRIVER = "postgresql+psycopg://"
_SECRETS = ("password", "passwd", "pwd", "sslpassword")
"""Keys of a URL's query that hold a password."""

_CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""Of libpq, as far as the URL says nothing of them: a server that is gone is noticed within a minute or so."""


def absolute_url(url: str | None) -> str | None:
    """The URL as it means the same everywhere: an SQLite file by its absolute path, PostgreSQL with its driver."""
    if url is None:
        return None
    for scheme in _POSTGRES:
        if url.startswith(scheme):
            return _DRIVER + url.removeprefix(scheme)
    if not url.startswith(_SQLITE) or url.startswith(_SQLITE + "/"):
        return url
    return _SQLITE + str(Path(url.removeprefix(_SQLITE)).absolute())


def without_password(url: str | None) -> str | None:
    """The URL as a run remembers it."""
    if url is None or url.startswith(_SQLITE):
        return url
    parsed = _parsed(url)
    public = parsed.create(parsed.drivername, parsed.username, None, parsed.host, parsed.port, parsed.database)
    return public.set(query=parsed.difference_update_query(_SECRETS).query).render_as_string(hide_password=False)


def check_storage(url: str | None) -> bool:
    """Whether there is a storage to look into: an SQLite file that is not there yet is not made for that.

    Raises:
        InputError: there is no folder for that file, or it is no file at all.
    """
    if url == "sqlite://":
        raise InputError("it keeps the study in memory only", "name a file: sqlite:///study.db", _FLAG)
    if url is None or not url.startswith(_SQLITE):
        return url is not None
    file = absolute(url.removeprefix(_SQLITE).partition("?")[0], where=_FLAG)
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"there is no folder {file.parent} that can be written", "create it", _FLAG)
    return file.exists()


def open_database(url: str) -> BaseStorage:
    """Opens a database. InputError where it cannot be: what, and how to mend it."""
    import optuna

    try:
        parsed = _parsed(url)
        password = os.environ.get(PASSWORD)
        if password and parsed.password is None and parsed.host is not None:
            parsed = parsed.set(password=password)
        storage = optuna.storages.RDBStorage(
            parsed.render_as_string(hide_password=False), engine_kwargs={"connect_args": _connection(parsed)}
        )
        return optuna.storages.get_storage(storage)
    except Exception as error:
        cause = cause_of(error)
        raise InputError(f"cannot open {url!r} ({cause})", _mend(url, cause), _FLAG) from None


def _parsed(url: str) -> URL:
    import sqlalchemy

    return sqlalchemy.make_url(url)


def _connection(url: URL) -> dict[str, Any]:
    if url.get_backend_name() != "postgresql" or url.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    return {key: value for key, value in _CONNECTION.items() if key not in url.query}


def _mend(url: str, cause: str) -> str:
    if "psycopg" in cause and "No module named" in cause:
        return "pip install 'evomerge[postgres]'"
    if "No module named" in cause:
        return "install the driver that the URL names"
    if "password" in cause:
        return f"give the password in the URL, by {PASSWORD}, or in ~/.pgpass"
    if url.startswith(_DRIVER):
        return "see that the server runs, and that the URL names it"
    return "give an Optuna storage URL"


def cause_of(error: BaseException) -> str:
    """What a library says of a failed access, on one line: the first thing that went wrong."""
    for deeper in _causes(error):
        error = deeper
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The errors that an error stands for, down to the driver's own."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = getattr(found, "orig", None) or found.__cause__


def is_lost(error: BaseException) -> bool:
    """Whether the connection to the server was lost, or cannot be made: what was to be written may be tried again."""
    import sqlalchemy

    for found in _causes(error):
        if isinstance(found, sqlalchemy.exc.DBAPIError) and found.connection_invalidated:
            return True
        if isinstance(found, (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError)):
            state = getattr(found.orig, "sqlstate", None) or getattr(found.orig, "pgcode", None)
            # Connection exceptions, and a server that is stopped by its administrator, crashes, or starts.
            return state is None or state.startswith(("08", "57P"))
    return False


def is_of_storage(error: BaseException) -> bool:
    """Whether a database in place of the journal failed."""
    return type(error).__module__.partition(".")[0] in ("optuna", "sqlalchemy")
