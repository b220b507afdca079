"""A PostgreSQL server of the tests' own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

USER, SECRET = "merger", "s3cr/et@x"
"""Who the tests connect as, and a password that a URL has to quote."""


def binaries() -> Path | None:
    """The folder of the server's programs; Debian keeps them out of the path. None where there are none."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((place for place in reversed(places) if (place / "initdb").is_file()), None)


class Server:
    """A server on a port of this machine. Nothing that it holds survives a power cut."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder, self._programs, self._data = folder, programs, folder / "data"
        # It refuses to be run by root.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user, self._user)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password = folder / "password"
        password.write_text(SECRET)
        if self._user:
            shutil.chown(password, self._user)
        self._call("initdb", "-A", "scram-sha-256", "-U", USER, "--pwfile", str(password), "--no-sync")
        password.unlink()
        settings = {"port": self.port, "listen_addresses": "'127.0.0.1'", "unix_socket_directories": "''"}
        settings |= {"fsync": "off", "max_connections": 30}
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{key} = {value}\n" for key, value in settings.items())

    def url(self, database: str = "postgres", password: str | None = SECRET, host: str | None = None) -> str:
        from urllib.parse import quote

        given = "" if password is None else f":{quote(password, safe='')}"
        return f"postgresql://{USER}{given}@{host or '127.0.0.1'}:{self.port}/{database}"

    def start(self) -> None:
        """Returns when it answers."""
        self._call("pg_ctl", "start", "-w", "-l", str(self._folder / "log"))

    def start_later(self, seconds: float) -> subprocess.Popen[bytes]:
        """Starts it from another process, which waits before."""
        start = f"sleep {seconds}; exec {self._programs}/pg_ctl start -w -D {self._data} -l {self._folder}/log"
        return subprocess.Popen(
            ["sh", "-c", start], user=self._user, cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self) -> None:
        """Stops it as a crash does: at once, whoever is connected."""
        self._call("pg_ctl", "stop", "-w", "-m", "immediate")

    def ask(self, query: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    def _call(self, program: str, *words: str) -> None:
        command = [str(self._programs / program), "-D", str(self._data), *words]
        with (self._folder / "said").open("w+") as said:
            done = subprocess.run(command, user=self._user, cwd=self._folder, stdout=said, stderr=said, check=False)
            said.seek(0)
            assert done.returncode == 0, said.read()


@contextmanager
def running() -> Iterator[Server]:
    """A server that runs, in a folder that only its user reads."""
    programs = binaries()
    assert programs is not None
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), programs)
        server.start()
        try:
            yield server
        finally:
            with suppress(AssertionError):  # a test has stopped it
                server.stop()
